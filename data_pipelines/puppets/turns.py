"""Who says or does what, and when: the plan of a puppet scene on a time axis in seconds."""

import dataclasses

import numpy as np

from data_pipelines.puppets import sentences
from data_pipelines.puppets.behaviour import ACTIONS, NOD_DELAY_S, NOD_S, action_seconds
from data_pipelines.puppets.speech import (
  HELD_OUT_VOICES,
  LANGUAGES,
  TRAIN_VOICES,
  SpeechError,
  Utterance,
  cut,
  speak,
)

_REACTION_ROOM_S = NOD_DELAY_S[1] + NOD_S + 0.08
_ACTIONS_START_S = 0.3
_ACTION_GAP_S = 0.12
_LONG_S = 6.0  # from here on a dialogue has several turns and an idle part
_EXCHANGE_S = 3.2  # the least room for a line of the partner and an answer
_MOST_SQUEEZED = 0.7


@dataclasses.dataclass(frozen=True)
class Said:
  """A part of a line on the time axis. `phrase_end`: 0.3 s of silence or more follow."""

  start_s: float
  utterance: Utterance
  role: str
  tags: frozenset[str]
  phrase_end: bool

  @property
  def end_s(self) -> float:
    return self.start_s + self.utterance.seconds


@dataclasses.dataclass(frozen=True)
class Acted:
  """An idle action (key of ACTIONS) on the time axis."""

  name: str
  start_s: float
  seconds: float


@dataclasses.dataclass
class Plan:
  """The lines of both sides and the idle actions, each in the order of time."""

  own: list[Said] = dataclasses.field(default_factory=list)
  partner: list[Said] = dataclasses.field(default_factory=list)
  actions: list[Acted] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Speaker:
  language: str
  voice: str
  speed: int
  pitch: int


class Planner:
  """Draws plans of `seconds` with voices and sentences of one side of the split."""

  def __init__(self, rng: np.random.Generator, seconds: float, held_out: bool):
    self.rng = rng
    self.seconds = seconds
    self.held_out = held_out
    language = str(rng.choice(LANGUAGES, p=(0.4, 0.2, 0.2, 0.2)))
    voices = (HELD_OUT_VOICES if held_out else TRAIN_VOICES)[language]
    pair = rng.choice(voices, size=2, replace=False)
    self.me, self.partner = (
      _Speaker(language, str(v), int(rng.integers(150, 196)), int(rng.integers(35, 66)))
      for v in pair
    )

  def speak(self) -> Plan:
    """The character alone speaks, to the end of the scene."""
    plan, cursor = Plan(), self._uniform(0.3, 0.5)
    while not plan.own or self.seconds - cursor > 1.1:
      kind = self._choice(statement=0.45, question=0.15, happy=0.15, hesitation=0.25)
      room = self.seconds - 0.25 - cursor
      said = self._line(self.me, kind, cursor, room, shortest=min(0.5 * room, 1.4))
      plan.own += said
      cursor = _end(said, self.seconds) + self._uniform(0.5, 0.8)
    return plan

  def listen(self) -> Plan:
    """The partner alone speaks; the last reaction of the character fits into the scene."""
    plan, cursor = Plan(), self._uniform(0.25, 0.4)
    while not plan.partner or self.seconds - cursor > 2.2:
      said = self._partner_turn(cursor, self.seconds - _REACTION_ROOM_S - cursor)
      plan.partner += said
      cursor = _end(said, self.seconds) + self._uniform(0.9, 1.2)
    return plan

  def idle(self, actions: tuple[str, ...] | None) -> Plan:
    """Nobody speaks; `actions` in this order, or one or two (more in long scenes) drawn here."""
    if actions is None:
      most = 2 if self.seconds < _LONG_S else 4
      count = 0 if self.rng.random() < 0.06 else int(self.rng.integers(1, most + 1))
      if most == 2 and count == 1 and self.rng.random() < 0.4:
        count = 2
      actions = self._actions(count)
    return Plan(actions=self._place(actions, _ACTIONS_START_S, self.seconds - 0.1))

  def dialogue(self, actions: tuple[str, ...] | None) -> Plan:
    """Both speak: short scenes hold one exchange, long ones several turns and an idle part."""
    if self.seconds >= _LONG_S:
      return self._long_dialogue(actions)
    exchange = {
      "reply": self._reply,
      "ask": self._ask,
      "interrupted": self._interrupted,
      "backchannel": self._backchannel,
    }[self._choice(reply=0.5, ask=0.2, interrupted=0.15, backchannel=0.15)]
    return exchange()

  def _reply(self) -> Plan:
    start = self._uniform(0.25, 0.35)
    partner = self._line(self.partner, self._short_kind(), start, 0.4 * self.seconds)
    reply_start = _end(partner, start) + self._uniform(0.4, 0.6)
    kind = self._choice(short=0.6, short_question=0.15, happy=0.15, hesitation=0.1)
    own = self._line(self.me, kind, reply_start, self.seconds - 0.2 - reply_start)
    return Plan(own=own, partner=partner)

  def _ask(self) -> Plan:
    start = self._uniform(0.3, 0.4)
    own = self._line(self.me, self._short_kind(), start, 0.33 * self.seconds)
    partner_start = _end(own, start) + self._uniform(0.2, 0.35)
    room = self.seconds - _REACTION_ROOM_S - partner_start
    return Plan(own=own, partner=self._line(self.partner, self._short_kind(), partner_start, room))

  def _interrupted(self) -> Plan:
    """The partner breaks in; the character stops a moment later and listens."""
    start = self._uniform(0.3, 0.4)
    own = self._line(self.me, "statement", start, 2.4, shortest=1.1)
    breaks_in = start + self._uniform(0.5, 0.75)
    stops = breaks_in + self._uniform(0.15, 0.25)
    own = [
      dataclasses.replace(said, utterance=cut(said.utterance, stops - said.start_s))
      for said in own
      if said.start_s < stops
    ]
    room = self.seconds - _REACTION_ROOM_S - breaks_in
    return Plan(own=own, partner=self._line(self.partner, self._short_kind(), breaks_in, room))

  def _backchannel(self) -> Plan:
    """The character drops in a word while the partner goes on."""
    start = self._uniform(0.25, 0.35)
    room = self.seconds - _REACTION_ROOM_S - start
    partner = self._line(self.partner, "statement", start, room, shortest=1.2)
    word_start = start + self._uniform(0.5, 0.65)
    return Plan(own=self._line(self.me, "backchannel", word_start, 0.6), partner=partner)

  def _long_dialogue(self, actions: tuple[str, ...] | None) -> Plan:
    plan, cursor = Plan(), self._uniform(0.3, 0.5)
    if actions is None:
      actions = self._actions(1 if self.seconds < 1.3 * _LONG_S else 2)
    idle_s = sum(action_seconds(name) + _ACTION_GAP_S for name in actions) + 0.5
    waiting = True
    while True:
      room = self.seconds - cursor - (idle_s if waiting else 0)
      if room > _EXCHANGE_S or not plan.partner:
        cursor = self._exchange(plan, cursor, min(room, 6.0))
      elif not waiting and room > 2.2:
        plan.partner += self._partner_turn(cursor, room - _REACTION_ROOM_S)
        return plan
      elif not waiting:
        return plan
      room = self.seconds - cursor - idle_s
      if waiting and (room < _EXCHANGE_S or self.rng.random() < 0.4):
        plan.actions = self._place(actions, cursor + 0.2, self.seconds - 0.1)
        cursor = max([cursor + 1.0, *(a.start_s + a.seconds for a in plan.actions)]) + 0.3
        waiting = False

  def _exchange(self, plan: Plan, start_s: float, room_s: float) -> float:
    """The partner speaks and the character answers; returns when the next thing can start."""
    speech_s = room_s - 1.1  # the pauses below at their longest
    partner = self._partner_turn(start_s, 0.43 * speech_s)
    plan.partner += partner
    reply_start = _end(partner, start_s) + self._uniform(0.4, 0.6)
    kind = self._choice(statement=0.4, question=0.15, happy=0.15, hesitation=0.3)
    own = self._line(self.me, kind, reply_start, 0.57 * speech_s)
    plan.own += own
    return _end(own, reply_start) + self._uniform(0.3, 0.5)

  def _partner_turn(self, start_s: float, room_s: float) -> list[Said]:
    """One phrase, or two with a pause that makes the first one an end of its own."""
    pause = self._uniform(0.35, 0.5)
    if room_s > 1.5 and self.rng.random() < 0.5:
      first = self._line(self.partner, self._short_kind(), start_s, 0.5 * (room_s - pause))
      second_start = _end(first, start_s) + pause
      rest = start_s + room_s - second_start
      return first + self._line(self.partner, self._short_kind(), second_start, rest)
    kind = self._choice(statement=0.45, question=0.3, happy=0.25)
    return self._line(self.partner, kind, start_s, room_s)

  def _line(
    self, speaker: _Speaker, kind: str, start_s: float, room_s: float, shortest: float = 0.0
  ) -> list[Said]:
    """A line of `kind` of `shortest` to `room_s` seconds, else a short one, else nothing."""
    for attempt in range(16):
      if attempt == 6:
        shortest = 0.0
      if attempt == 10:
        kind = "short_question" if "question" in kind else "short"
      line = sentences.sample_line(self.rng, speaker.language, kind, self.held_out)
      said = self._say(speaker, line, start_s, hurry=6 * attempt)
      if said and shortest <= said[-1].end_s - start_s <= room_s:
        return said
    return []

  def _say(self, speaker: _Speaker, line: sentences.Line, start_s: float, hurry: int) -> list[Said]:
    happy = "happy" in line.tags
    said, cursor = [], start_s
    for i, part in enumerate(line.parts):
      filler = part.role == "hesitation"
      try:
        utterance = speak(
          part.text,
          speaker.voice,
          speed=95 if filler else speaker.speed + hurry + 10 * happy,
          pitch=min(99, speaker.pitch + 25 * happy - 8 * filler),
          pitch_range=95 if happy else 15 if filler else 55,
        )
      except SpeechError:
        if i == 0 and len(line.parts) == 1:
          return []
        raise
      last = i == len(line.parts) - 1
      said.append(Said(cursor, utterance, part.role, line.tags, phrase_end=last))
      pause = self._uniform(0.25, 0.4) if filler else self._uniform(0.08, 0.15)
      cursor += utterance.seconds + pause
    return said

  def _actions(self, count: int) -> tuple[str, ...]:
    return tuple(str(name) for name in self.rng.choice(list(ACTIONS), size=count, replace=False))

  def _place(self, actions: tuple[str, ...], start_s: float, end_s: float) -> list[Acted]:
    unknown = [name for name in actions if name not in ACTIONS]
    if unknown:
      raise ValueError(f"unknown idle actions {unknown}, expected some of {list(ACTIONS)}")
    wanted = [action_seconds(name) * self._uniform(0.96, 1.04) for name in actions]
    room = end_s - start_s - _ACTION_GAP_S * max(len(actions) - 1, 0)
    squeeze = min(1.0, room / max(sum(wanted), 1e-6))
    if squeeze < _MOST_SQUEEZED:
      raise ValueError(
        f"actions {list(actions)}: found {sum(wanted):.1f} s, expected {max(room, 0):.1f} s at most"
      )
    placed, cursor = [], start_s
    for name, seconds in zip(actions, wanted, strict=True):
      placed.append(Acted(name, cursor, seconds * squeeze))
      cursor += seconds * squeeze + _ACTION_GAP_S
    return placed

  def _short_kind(self) -> str:
    return self._choice(short=0.45, short_question=0.3, happy=0.25)

  def _choice(self, **weights: float) -> str:
    return str(self.rng.choice(list(weights), p=list(weights.values())))

  def _uniform(self, low: float, high: float) -> float:
    return float(self.rng.uniform(low, high))


def _end(said: list[Said], otherwise: float) -> float:
  return said[-1].end_s if said else otherwise
