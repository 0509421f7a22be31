"""A puppet scene: two audio tracks, a text, and the pose of the character that follows from it."""

import dataclasses

import numpy as np

from data_pipelines.clip import EMOTIONS, SAMPLE_RATE, audio_samples
from data_pipelines.puppets import behaviour
from data_pipelines.puppets.pose import POSE_FIELDS, POSE_INDEX
from data_pipelines.puppets.turns import Plan, Planner, Said
from data_pipelines.puppets.visemes import is_vowel, mouth_tracks

FPS = 24.0
SCENE_KINDS = ("speak", "listen", "idle", "dialogue")
SPLITS = ("train", "validation", "heldout", "heldout_style")
EMOTION_WORDS = {
  "neutral": ("calm", "relaxed"),
  "happiness": ("happy", "cheerful"),
  "sadness": ("sad", "gloomy"),
  "anger": ("angry", "furious"),
  "surprise": ("surprised", "astonished"),
  "fear": ("frightened", "anxious"),
  "disgust": ("disgusted", "repelled"),
  "contempt": ("contemptuous", "scornful"),
}
# By (the character speaks, the partner speaks).
_VERBS = {
  (True, False): "speaks",
  (False, True): "listens",
  (False, False): "waits",
  (True, True): "talks with someone",
}
_SHORTEST_FRAMES = 73
_SPEECH_LEAD_S, _SPEECH_HANGOVER_S = 0.05, 0.12
_IDLE, _SPEAKING, _LISTENING = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Event:
  """Something that happens in a scene; times in seconds from its first frame.

  Kinds: speech, partner_speech, partner_phrase_end, question, laughter, nod, hesitation, action
  (`detail` is a key of ACTIONS), emotion (`detail` is one of EMOTIONS).
  """

  kind: str
  start_s: float
  end_s: float
  detail: str = ""


@dataclasses.dataclass(frozen=True)
class Scene:
  """What happens in a clip, before anybody is drawn.

  Shapes: speak_audio, listen_audio float32 [S] 16 kHz; pose float32 [T, 14]; state int8 [T] (index
  in STATES); emotion int8 [T] (index in EMOTIONS). Frame k is at k / 24 s.
  """

  kind: str
  speak_audio: np.ndarray
  listen_audio: np.ndarray
  pose: np.ndarray
  state: np.ndarray
  emotion: np.ndarray
  events: tuple[Event, ...]
  emotion_words: tuple[tuple[str, str], ...]  # (one of EMOTIONS, its word in the text), in order

  @property
  def text(self) -> str:
    """What a person would write to get this scene: the emotions and, in order, the idle actions."""
    end_s = len(self.pose) / FPS
    shown = [word for name, word in self.emotion_words if EMOTIONS.index(name) in self.emotion]
    words = ", then ".join(shown or [self.emotion_words[0][1]])
    kinds = {event.kind for event in self.events}
    does = [
      event.detail
      for event in self.events
      if event.kind == "action" and 0 <= 0.5 * (event.start_s + event.end_s) < end_s
    ]
    if not does or "speech" in kinds or "partner_speech" in kinds:
      does = [_VERBS["speech" in kinds, "partner_speech" in kinds], *does]
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words} character {', then '.join(does)}"


def compose_scene(
  seed: int,
  kind: str,
  split: str,
  frames: int = 73,
  actions: tuple[str, ...] | None = None,
  emotion: str | tuple[str, str] | None = None,
) -> Scene:
  """Composes a scene; the same arguments give the same scene on every machine.

  Args:
    kind: one of SCENE_KINDS.
    split: one of SPLITS; the held-out ones use voices and sentences of their own.
    frames: length; fewer than 73 are the start of a scene of 73.
    actions: idle actions (keys of `behaviour.ACTIONS`) in this order, for idle and long dialogue
      scenes.
    emotion: one of EMOTIONS, or two of them for a change halfway.

  Raises ValueError for an unknown kind, split, action or emotion, and for actions that do not fit.
  """
  _check(kind, split, frames, actions, emotion)
  rng = np.random.default_rng((seed, SPLITS.index(split), SCENE_KINDS.index(kind)))
  length = max(frames, _SHORTEST_FRAMES)
  planner = Planner(rng, length / FPS, held_out=split.startswith("heldout"))
  if kind == "speak":
    plan = planner.speak()
  elif kind == "listen":
    plan = planner.listen()
  else:
    plan = getattr(planner, kind)(actions)
  emotions = _draw_emotions(rng, kind) if emotion is None else emotion
  emotions = (emotions,) if isinstance(emotions, str) else tuple(emotions)
  scene = _perform(rng, kind, plan, length, emotions)
  return scene if frames == length else window(scene, 0, frames)


def window(scene: Scene, start: int, frames: int) -> Scene:
  """`frames` frames of a scene from frame `start`; event times count from the new start."""
  begin = start / FPS
  sample = round(begin * SAMPLE_RATE)
  samples = audio_samples(frames, FPS)
  if start < 0 or start + frames > len(scene.pose):
    raise ValueError(f"frames {start}..{start + frames} of a scene of {len(scene.pose)}")
  events = tuple(
    dataclasses.replace(event, start_s=event.start_s - begin, end_s=event.end_s - begin)
    for event in scene.events
    if event.end_s >= begin and event.start_s < begin + frames / FPS
  )
  part = slice(start, start + frames)
  return dataclasses.replace(
    scene,
    speak_audio=_fit(scene.speak_audio[sample : sample + samples], samples),
    listen_audio=_fit(scene.listen_audio[sample : sample + samples], samples),
    pose=scene.pose[part],
    state=scene.state[part],
    emotion=scene.emotion[part],
    events=events,
  )


def _check(kind, split, frames, actions, emotion):
  if kind not in SCENE_KINDS:
    raise ValueError(f"unknown kind of scene {kind!r}, expected one of {SCENE_KINDS}")
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
  if frames < 1:
    raise ValueError(f"a scene has at least one frame, found {frames}")
  if actions is not None and kind not in ("idle", "dialogue"):
    raise ValueError(f"idle actions do not belong into a scene of kind {kind!r}")
  names = (emotion,) if isinstance(emotion, str) else emotion or ()
  if len(names) > 2 or any(name not in EMOTIONS for name in names):
    raise ValueError(f"unknown emotion {emotion!r}, expected one or two of {EMOTIONS}")


def _draw_emotions(rng: np.random.Generator, kind: str) -> tuple[str, ...]:
  draw = rng.random()
  # A listener's text says nothing that changes with time.
  changes = kind != "listen" and draw < 0.15
  if changes:
    return tuple(str(name) for name in rng.choice(EMOTIONS, size=2, replace=False))
  return ("neutral",) if draw < 0.55 else (str(rng.choice(EMOTIONS[1:])),)


def _perform(
  rng: np.random.Generator, kind: str, plan: Plan, frames: int, emotions: tuple[str, ...]
) -> Scene:
  t = np.arange(frames) / FPS
  nods, events = _events(rng, plan)
  state = _state(t, plan, nods)
  hesitations = [event for event in events if event.kind == "hesitation"]
  held = np.zeros(frames)
  for event in hesitations:
    held = np.maximum(held, behaviour.hesitation_weight(t, event.start_s, event.end_s))

  fields = {name: np.zeros(frames) for name in POSE_FIELDS}
  weights = behaviour.emotion_weights(t, emotions[0], emotions[1] if len(emotions) > 1 else None)
  behaviour.add_sway(fields, t, held, rng)
  behaviour.add_saccades(fields, t, (state != _IDLE).astype(np.float64), rng)
  behaviour.add_emotion(fields, weights)
  behaviour.add_blinks(fields, t, rng)
  _react(fields, t, plan, nods)
  for said in plan.own:
    opening, width = mouth_tracks(said.utterance, t - said.start_s)
    # Parts of a line follow each other closely: the wider mouth counts.
    fields["mouth_width"] = np.where(opening > fields["mouth_open"], width, fields["mouth_width"])
    fields["mouth_open"] = np.maximum(fields["mouth_open"], opening)
  for line in _lines(plan.own):
    behaviour.add_beats(fields, t, [s for said in line for s in _stresses(said)])
  behaviour.add_hesitation(fields, held)
  for acted in plan.actions:
    behaviour.add_action(fields, t, acted.name, acted.start_s, acted.seconds)

  strengths = np.stack([weight for _, weight in weights])
  shown = np.array([EMOTIONS.index(name) for name, _ in weights])[strengths.argmax(0)]
  return Scene(
    kind=kind,
    speak_audio=_mix(plan.own, frames),
    listen_audio=_mix(plan.partner, frames),
    pose=_pose(fields),
    state=state,
    emotion=np.where(strengths.max(0) >= 0.5, shown, EMOTIONS.index("neutral")).astype(np.int8),
    events=tuple(sorted(events, key=lambda event: (event.start_s, event.kind))),
    emotion_words=tuple((name, str(rng.choice(EMOTION_WORDS[name]))) for name in emotions),
  )


def _events(rng: np.random.Generator, plan: Plan) -> tuple[list[float], list[Event]]:
  """Start times of the nods, and all events."""
  nods, events = [], []
  for line in _lines(plan.own):
    events.append(Event("speech", line[0].start_s, line[-1].end_s))
    for said, following in zip(line, line[1:], strict=False):
      if said.role == "hesitation":
        events.append(Event("hesitation", said.start_s, following.start_s))
  for said in plan.partner:
    events.append(Event("partner_speech", said.start_s, said.end_s))
    for tag in ("question", "laughter"):
      if tag in said.tags:
        events.append(Event(tag, said.start_s, said.end_s))
    if said.phrase_end:
      events.append(Event("partner_phrase_end", said.end_s, said.end_s))
      nod = said.end_s + float(rng.uniform(*behaviour.NOD_DELAY_S))
      if not any(own.start_s <= nod < own.end_s for own in plan.own):
        nods.append(nod)
        events.append(Event("nod", nod, nod + behaviour.NOD_S))
  events += [
    Event("action", acted.start_s, acted.start_s + acted.seconds, acted.name)
    for acted in plan.actions
  ]
  return nods, events


def _lines(said: list[Said]) -> list[list[Said]]:
  """Parts grouped into lines: a line ends where its phrase ends."""
  lines, line = [], []
  for part in said:
    line.append(part)
    if part.phrase_end:
      lines.append(line)
      line = []
  return lines + ([line] if line else [])


def _state(t: np.ndarray, plan: Plan, nods: list[float]) -> np.ndarray:
  state = np.zeros(len(t), np.int8)
  for line in _lines(plan.partner):
    reaction = [nod + behaviour.NOD_S for nod in nods if 0 < nod - line[-1].end_s < 0.5]
    end = max([line[-1].end_s, *reaction])
    state[(t >= line[0].start_s) & (t < end)] = _LISTENING
  for line in _lines(plan.own):
    start, end = line[0].start_s - _SPEECH_LEAD_S, line[-1].end_s + _SPEECH_HANGOVER_S
    state[(t >= start) & (t < end)] = _SPEAKING
  return state


def _react(fields: behaviour.Fields, t: np.ndarray, plan: Plan, nods: list[float]):
  for nod in nods:
    behaviour.add_nod(fields, t, nod)
  for said in plan.partner:
    if "laughter" in said.tags:
      behaviour.add_answering_smile(fields, t, said.start_s, said.end_s)
    if "question" in said.tags and said.phrase_end:
      behaviour.add_question_brows(fields, t, said.end_s)


def _stresses(said: Said) -> list[tuple[float, float]]:
  """(time of the middle, loudness) of the stressed vowels of a phrase."""
  if said.role == "hesitation":
    return []
  found = []
  for phone in said.utterance.phones:
    if phone.stressed and is_vowel(phone.name):
      span = slice(round(phone.start_s * SAMPLE_RATE), round(phone.end_s * SAMPLE_RATE))
      loudness = float(np.sqrt(np.mean(said.utterance.audio[span] ** 2))) + 1e-6
      found.append((said.start_s + 0.5 * (phone.start_s + phone.end_s), loudness))
  return found


def _mix(said: list[Said], frames: int) -> np.ndarray:
  """One audio track; speech is the same level everywhere, hesitations are softer."""
  track = np.zeros(audio_samples(frames, FPS), np.float32)
  for part in said:
    start = round(part.start_s * SAMPLE_RATE)
    audio = part.utterance.audio[: max(len(track) - start, 0)]
    track[start : start + len(audio)] += audio * (0.6 if part.role == "hesitation" else 1.0)
  return np.clip(track, -1, 1)


def _pose(fields: behaviour.Fields) -> np.ndarray:
  pose = np.stack([fields[name] for name in POSE_FIELDS], axis=1).astype(np.float32)
  for name in ("mouth_open", "frown", "nose_wrinkle", "blink"):
    pose[:, POSE_INDEX[name]] = pose[:, POSE_INDEX[name]].clip(0, 1)
  for name in ("mouth_width", "smile", "brow", "gaze_x", "gaze_y", "lean_x", "lean_y"):
    pose[:, POSE_INDEX[name]] = pose[:, POSE_INDEX[name]].clip(-1, 1)
  return pose


def _fit(audio: np.ndarray, samples: int) -> np.ndarray:
  return np.pad(audio, (0, samples - len(audio)))
