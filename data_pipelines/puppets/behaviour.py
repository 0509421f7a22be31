"""How a puppet moves: blinks, gestures of a speaker, reactions of a listener, actions, emotions.

Everything is a smooth function of time. "Left" in a text is the left of the image: negative yaw and
gaze_x. What a model must produce can be told from the two audio tracks and the text; what is random
is small.
"""

import dataclasses

import numpy as np

from data_pipelines.puppets.expressions import EMOTION_POSES

NOD_DELAY_S = (0.18, 0.25)  # from the end of a phrase of the partner to the start of the nod
NOD_S = 0.45
NOD_DEPTH = 0.26  # radians
EMOTION_SCALE = 0.55
_BLINK_S = (0.07, 0.04, 0.11)  # closing, closed, opening
_BEAT_S = 0.30
_BEAT_DEPTH = 0.11
_BEAT_SPACING_S = 0.32
# Where the eyes go belongs to what the character does, not to what it feels.
_NOT_EMOTION = ("gaze_x", "gaze_y")

Fields = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Action:
  """An idle action: how long it takes and the pose it reaches and leaves again."""

  seconds: float
  pose: dict[str, float]


ACTIONS: dict[str, Action] = {
  "looks left": Action(1.0, {"gaze_x": -1.0, "yaw": -0.16}),
  "looks right": Action(1.0, {"gaze_x": 1.0, "yaw": 0.16}),
  "looks up": Action(1.0, {"gaze_y": 1.0, "pitch": 0.14}),
  "looks down": Action(1.0, {"gaze_y": -1.0, "pitch": -0.14}),
  "smiles": Action(1.1, {"smile": 1.0}),
  "raises the brows": Action(1.0, {"brow": 1.0}),
  "frowns": Action(1.1, {"frown": 1.0, "brow": -0.9, "smile": -0.35}),
  "wrinkles the nose": Action(1.0, {"nose_wrinkle": 1.0, "brow": -0.3, "blink": 0.25}),
  "blinks slowly": Action(0.9, {"blink": 1.0}),
  "yawns": Action(1.4, {"mouth_open": 1.0, "mouth_width": -0.35, "blink": 0.9, "pitch": 0.16}),
  "opens the mouth wide": Action(1.0, {"mouth_open": 1.0, "mouth_width": 0.15}),
  "turns left": Action(1.4, {"yaw": -1.25}),
  "turns right": Action(1.4, {"yaw": 1.25}),
  "tilts the head": Action(1.1, {"roll": 0.42}),
}


def action_seconds(name: str) -> float:
  return ACTIONS[name].seconds


def smoothstep(x: np.ndarray) -> np.ndarray:
  x = np.clip(x, 0, 1)
  return x * x * (3 - 2 * x)


def bump(t: np.ndarray, start: float, attack: float, hold: float, release: float) -> np.ndarray:
  """0, smoothly to 1 over `attack` from `start`, 1 for `hold`, smoothly back over `release`."""
  rise = smoothstep((t - start) / attack)
  fall = smoothstep((t - start - attack - hold) / release)
  return rise * (1 - fall)


def dip(t: np.ndarray, start: float, seconds: float) -> np.ndarray:
  """sin^2 over `seconds` from `start`, 0 elsewhere: the shape of nods and beats."""
  phase = (t - start) / seconds
  return np.where((phase > 0) & (phase < 1), np.sin(np.pi * phase) ** 2, 0.0)


def blend(fields: Fields, weight: np.ndarray, pose: dict[str, float]):
  """Moves the named fields towards `pose` by `weight` 0..1, in place."""
  for name, value in pose.items():
    fields[name] = fields[name] + weight * (value - fields[name])


def add_sway(fields: Fields, t: np.ndarray, stillness: np.ndarray, rng: np.random.Generator):
  """A slow, small drift of head and torso that stands still where `stillness` is 1."""
  step = np.diff(t, prepend=t[0])
  own_time = np.cumsum(step * (1 - stillness))
  sizes = {"yaw": 0.035, "pitch": 0.02, "roll": 0.025, "lean_x": 0.10, "lean_y": 0.06}
  for name, size in sizes.items():
    for share, (low, high) in ((0.65, (0.12, 0.25)), (0.35, (0.3, 0.5))):
      frequency, phase = rng.uniform(low, high), rng.uniform(0, 2 * np.pi)
      angle = 2 * np.pi * frequency * own_time
      # From rest: the first frame is a main picture.
      fields[name] = fields[name] + share * size * 0.5 * (np.sin(angle + phase) - np.sin(phase))


def add_saccades(fields: Fields, t: np.ndarray, attention: np.ndarray, rng: np.random.Generator):
  """Small jumps of the eyes; `attention` 1 (on the partner) makes them smaller still."""
  cursor, place = 0.3, np.zeros(2)
  x, y = np.zeros_like(t), np.zeros_like(t)
  while cursor < t[-1]:
    target = rng.uniform(-0.09, 0.09, 2)
    ramp = smoothstep((t - cursor) / 0.06)
    x, y = x + ramp * (target[0] - place[0]), y + ramp * (target[1] - place[1])
    place = target
    cursor += rng.uniform(0.5, 1.3)
  fields["gaze_x"] = fields["gaze_x"] + x * (1 - 0.7 * attention)
  fields["gaze_y"] = fields["gaze_y"] + y * (1 - 0.7 * attention)


def add_blinks(fields: Fields, t: np.ndarray, rng: np.random.Generator):
  """Blinks of a fifth of a second, every 1.5 to 5 s, none in the first 0.4 s."""
  cursor = 0.4 + rng.exponential(1.3)
  while cursor < t[-1]:
    fields["blink"] = np.maximum(fields["blink"], bump(t, cursor, *_BLINK_S))
    cursor += 1.5 + min(rng.exponential(1.6), 3.5)


def emotion_weights(t: np.ndarray, first: str, second: str | None) -> list[tuple[str, np.ndarray]]:
  """How much of each shows: `first` comes up in the first second, `second` takes over halfway."""
  rise = smoothstep((t - 0.15) / 0.8)
  if second is None:
    return [(first, rise)]
  turn = smoothstep((t - 0.5 * (t[-1] + t[0]) + 0.5) / 1.0)
  return [(first, rise * (1 - turn)), (second, turn)]


def add_emotion(fields: Fields, weights: list[tuple[str, np.ndarray]]):
  """The face of each emotion, without opening the mouth and without moving the eyes away."""
  for name, weight in weights:
    for field, value in EMOTION_POSES[name].items():
      if field not in _NOT_EMOTION:
        fields[field] = fields[field] + EMOTION_SCALE * value * weight


def add_action(fields: Fields, t: np.ndarray, name: str, start: float, seconds: float):
  """An idle action at its time."""
  weight = bump(t, start, 0.28 * seconds, 0.42 * seconds, 0.30 * seconds)
  blend(fields, weight, ACTIONS[name].pose)


def add_nod(fields: Fields, t: np.ndarray, start: float):
  """One nod: the head dips and comes back."""
  fields["pitch"] = fields["pitch"] - NOD_DEPTH * dip(t, start, NOD_S)


def add_question_brows(fields: Fields, t: np.ndarray, phrase_end: float):
  """Brows of a listener, from when the final rise of a question is heard."""
  blend(fields, bump(t, phrase_end - 0.15, 0.2, 0.45, 0.35), {"brow": 0.95})


def add_answering_smile(fields: Fields, t: np.ndarray, start: float, end: float):
  """Smile of a listener while and shortly after the partner laughs or sounds happy."""
  hold = max(end - start + 0.1, 0.2)
  blend(fields, bump(t, start + 0.25, 0.3, hold, 0.4), {"smile": 0.95})


def hesitation_weight(t: np.ndarray, start: float, resumes: float) -> np.ndarray:
  """1 while the character searches for words: from the filler until speech resumes."""
  attack = 0.16
  return bump(t, start - 0.08, attack, max(resumes - start - 0.04 - attack, 0.05), 0.18)


def add_hesitation(fields: Fields, weight: np.ndarray):
  """Eyes go up and to the image right, the head is held a little higher."""
  blend(fields, weight, {"gaze_x": 0.8, "gaze_y": 0.7})
  fields["pitch"] = fields["pitch"] + 0.05 * weight


def add_beats(fields: Fields, t: np.ndarray, stresses: list[tuple[float, float]]):
  """Head beats on stressed vowels, the brows up on the strongest.

  Args:
    stresses: (time of the vowel's middle, loudness) of one line.
  """
  if not stresses:
    return
  strongest = max(stresses, key=lambda stress: stress[1])
  last = -np.inf
  for time, loudness in stresses:
    if time - last >= _BEAT_SPACING_S:
      depth = _BEAT_DEPTH * (0.6 + 0.4 * loudness / strongest[1])
      fields["pitch"] = fields["pitch"] - depth * dip(t, time - 0.45 * _BEAT_S, _BEAT_S)
      last = time
  fields["brow"] = fields["brow"] + 0.5 * bump(t, strongest[0] - 0.15, 0.15, 0.1, 0.25)
