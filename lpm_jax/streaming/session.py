"""A live session: sound and text are pushed in, frames with their sound are pulled out.

Plain Python around the compiled step. Everything that changes the character changes it at a chunk
boundary. Time is that of the stream: chunk n shows `seconds` n * length .. (n + 1) * length, with
the reply that is heard then.

When compute is late, first the look-ahead shrinks; with `degrade` the next chunks then get fewer
evaluations (`Effort`); when nothing is ready the consumer holds the last frame and the reply waits
with it, so lips and sound stay together; then the oldest sound of the partner is dropped. Each is
counted, and full effort is back as soon as compute is in time.
"""

import collections
import dataclasses
import enum
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from data_pipelines.clip import SAMPLE_RATE, fitted_audio
from lpm_jax.streaming.effort import Effort, Pace
from lpm_jax.streaming.gate import GateSettings, SpeechGate
from lpm_jax.streaming.performer import Labelled, Performance, Performer
from lpm_jax.streaming.report import Speed, quantiles
from lpm_jax.streaming.sound import Track

# The state before a chunk, the gates, and since when the partner waits for an answer.
_Before = tuple[Performance, dict[str, SpeechGate], int | None]


class State(enum.Enum):
  """What the character is doing, as its sound says."""

  WARM_UP = "warm-up"
  IDLE = "idle"
  LISTENING = "listening"
  RESPONDING = "responding"


@dataclasses.dataclass(frozen=True)
class SessionSettings:
  """Bounds of a session.

  Attributes:
    look_ahead: chunks that are made before they are pulled.
    partner_seconds: sound of the partner that may wait; older sound is dropped.
    bend: largest share by which the partner's sound is played faster or slower, so that a clock
      that drifts costs no sound (`Track.take_bent`).
    reply_seconds: reply that may wait; voice services send faster than it is spoken.
    reply_start: seconds of a reply that must be there before it begins, unless it has ended.
    text_characters: longer texts are cut.
    degrade: whether a chunk that would be late gets fewer evaluations; needs a performer that was
      warmed up with all efforts. Without it a stream has the same bits on any machine.
    gate: when sound is speech.
    timings: chunks over which times are kept.
  """

  look_ahead: int = 1
  partner_seconds: float = 3.0
  bend: float = 0.01
  reply_seconds: float = 120.0
  reply_start: float = 0.25
  text_characters: int = 1_000
  degrade: bool = False
  gate: GateSettings = GateSettings()
  timings: int = 4_096

  def __post_init__(self):
    if self.look_ahead < 1:
      raise ValueError(f"look_ahead: found {self.look_ahead}, expected at least 1")
    if not 0.0 <= self.bend < 0.1:
      raise ValueError(f"bend: found {self.bend}, expected a share in [0, 0.1)")


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Frames with their sound.

  Attributes:
    index: of the chunk in the stream.
    seconds: time of its first frame in the stream.
    frames: uint8 [T, H, W, 3].
    reply, partner: float32 [S] at 16 kHz, as long as the frames.
    state: what the character does in it.
    text: that it follows.
    held: the model failed, and the frame before is held.
    effort: the work that went into it.
  """

  index: int
  seconds: float
  frames: np.ndarray
  reply: np.ndarray
  partner: np.ndarray
  state: State
  text: str
  held: bool
  effort: Effort


@dataclasses.dataclass
class Counts:
  """What went wrong so far, in chunks, and in samples of sound."""

  not_finite: int = 0
  short: int = 0
  coarse: int = 0
  late: int = 0
  interrupted: int = 0
  partner_missing: int = 0
  reply_missing: int = 0
  texts_cut: int = 0


class Session:
  """One character on stage.

  Args:
    performer: the compiled model.
    picture: main picture uint8 [H, W, 3].
    references: (picture, kind, label) each; none: the main picture alone.
    text: what the character does at first.
    settings: bounds.
    seed: of the noise.
    clock: seconds, monotonic.
  """

  def __init__(
    self,
    performer: Performer,
    picture: np.ndarray,
    references: Sequence[Labelled] = (),
    text: str = "",
    settings: SessionSettings | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._born = clock()
    self.settings = settings or SessionSettings()
    self.counts = Counts()
    self.chunk_seconds: collections.deque[float] = collections.deque(maxlen=self.settings.timings)
    self.response_seconds: collections.deque[float] = collections.deque(
      maxlen=self.settings.timings
    )
    self.first_frame_seconds: float | None = None
    self.pulled = 0
    self._performer, self._clock = performer, clock
    self._begin = lambda: performer.begin(picture, references, self._text, seed)
    self._text = self._shortened(text)
    self._partner = Track("partner", self.settings.partner_seconds, self.settings.bend)
    self._partner_speed = Speed(self._partner, performer.samples, clock)
    self._reply = Track("reply", self.settings.reply_seconds)
    self._reply_ended = True
    self._gates = {name: SpeechGate(self.settings.gate) for name in ("partner", "reply")}
    self._ready: collections.deque[tuple[_Before, Chunk]] = collections.deque()
    self._made = 0
    self._waiting: int | None = None  # sample at which the partner stopped and waits since
    self._pace = self._make_pace()
    self._effort = Effort.FULL
    self._pulled_at: float | None = None
    self._shown = self._heard = 0  # frames, and samples of the reply, that were pulled
    self._depths = {
      name: collections.deque(maxlen=self.settings.timings)
      for name in ("ready", "waiting_partner", "waiting_reply")
    }
    self.state = State.WARM_UP
    self._performance, self.first_frame = self._begin()
    self._last = self.first_frame

  @property
  def ready(self) -> int:
    """Chunks that wait to be pulled."""
    return len(self._ready)

  def waiting_seconds(self) -> dict[str, float]:
    """Sound that waits, a track."""
    tracks = {"partner": self._partner, "reply": self._reply}
    return {name: len(track) / SAMPLE_RATE for name, track in tracks.items()}

  def push_partner(self, packet: np.ndarray, rate: int = SAMPLE_RATE, at: float | None = None):
    """What the partner says, as it is said. See `Track.push`."""
    self._partner.push(packet, rate, at)

  def push_reply(self, packet: np.ndarray, rate: int = SAMPLE_RATE):
    """What the character says, as early as it is known. See `Track.push`.

    Raises ValueError, and takes nothing in, when more would wait than `reply_seconds`: a reply must
    not lose its beginning.
    """
    seconds = len(self._reply) / SAMPLE_RATE + np.size(packet) / rate
    if seconds > self.settings.reply_seconds:
      raise ValueError(
        f"reply: found {seconds:.1f} s waiting, expected at most {self.settings.reply_seconds:g}"
      )
    self._reply.push(packet, rate)
    self._reply_ended = False

  def end_reply(self):
    """The reply is complete: what is left of it is spoken, however short."""
    self._reply_ended = True

  def push_text(self, text: str):
    """What the character does from the next chunk on; a long text is cut and counted."""
    self._text = self._shortened(text)

  def interrupt(self) -> float:
    """Drops the reply and all that has not been pulled; returns the seconds of it.

    The stream continues from the last chunk that was pulled: the next chunk has a closed mouth.
    The partner's sound that was used for dropped chunks is heard again.
    """
    dropped = len(self._reply) + sum(chunk.reply.size for _, chunk in self._ready)
    if self._ready:
      self._partner.put_back(np.concatenate([chunk.partner for _, chunk in self._ready]))
      self._performance, self._gates, self._waiting = self._ready[0][0]
      self._made -= len(self._ready)
      self.counts.interrupted += len(self._ready)
      self._ready.clear()
    self._reply.clear()
    self._reply_ended = True
    return dropped / SAMPLE_RATE

  def advance(self, wait: bool = False) -> bool:
    """Makes the next chunk, unless enough are ready; returns whether it did.

    Args:
      wait: make none before the partner has said all of it, while chunks are still ready.
    """
    if len(self._ready) >= self.settings.look_ahead:
      return False
    incomplete = self._partner.started and len(self._partner) < self._performer.samples
    if wait and self._ready and incomplete:
      return False
    self._ready.append(self._make())
    self._made += 1
    return True

  def pull(self) -> Chunk | None:
    """The next chunk; None, and counted, when it is not ready: hold the last frame."""
    if not self._ready:
      self.counts.late += 1
      return None
    _, chunk = self._ready.popleft()
    self.pulled += 1
    self._pulled_at = self._clock()
    self._shown += len(chunk.frames)
    self._heard += len(chunk.reply)
    self._last = chunk.frames[-1]
    return chunk

  def report(self) -> dict[str, float | int | str | None]:
    """Times in seconds and counts, so far.

    `chunk_*`: time to make a chunk; `response_*`: from the end of what the partner said to the
    first frame of the answer, in the time of the stream. `ready`, `waiting_*`: depth of the queues
    now, and its quantiles before each chunk. `audio_video_offset`: by how much the frames that were
    pulled are longer than their sound. `partner_speed`: seconds of the partner's sound a second.
    """
    depths = {name: quantiles(name, depth, (50, 95, 100)) for name, depth in self._depths.items()}
    return {
      "chunks": self._made,
      "effort": self._effort.name.lower(),
      **quantiles("chunk", self.chunk_seconds, (50, 95, 99)),
      "first_frame": self.first_frame_seconds,
      **quantiles("response", self.response_seconds, (50, 95)),
      "audio_video_offset": self._shown / self._performer.fps - self._heard / SAMPLE_RATE,
      "ready": self.ready,
      **{f"waiting_{k}": v for k, v in self.waiting_seconds().items()},
      **{key: value for depth in depths.values() for key, value in depth.items()},
      "partner_speed": self._partner_speed.seconds_a_second(),
      **{f"dropped_{t.name}": t.dropped / SAMPLE_RATE for t in (self._partner, self._reply)},
      "partner_filled": self._partner.filled / SAMPLE_RATE,
      "partner_repeated": self._partner.repeated / SAMPLE_RATE,
      "partner_bent": self._partner.bent / SAMPLE_RATE,
      "partner_jumps": self._partner.jumps,
      **dataclasses.asdict(self.counts),
    }

  def memory(self) -> tuple[dict, Performance]:
    """What it takes to go on from here, apart from what waits: plain facts, and the state."""
    facts = {
      "made": self._made,
      "pulled": self.pulled,
      "text": self._text,
      "waiting": self._waiting,
      "counts": dataclasses.asdict(self.counts),
      "gates": {name: gate.memory() for name, gate in self._gates.items()},
    }
    return facts, self._performance

  def remember(self, facts: dict, performance: Performance):
    """Goes on from what `memory` returned."""
    self._made, self.pulled = facts["made"], facts["pulled"]
    self._text, self._waiting = facts["text"], facts["waiting"]
    self.counts = Counts(**facts["counts"])
    for name, memory in facts["gates"].items():
      self._gates[name].remember(memory)
    self._performance = performance

  def _make(self) -> tuple[_Before, Chunk]:
    """What an interruption goes back to, and the next chunk."""
    begun, samples, text = self._clock(), self._performer.samples, self._text
    effort = self._choose_effort(begun)
    self._note_depths()
    partner = self._partner.take_bent(samples)
    reply = self._take_reply(samples)
    if self._partner.started:
      self.counts.partner_missing += samples - len(partner)
    partner, reply = fitted_audio(partner, samples), fitted_audio(reply, samples)
    before = (
      self._performer.copied(self._performance),
      {name: gate.copied() for name, gate in self._gates.items()},
      self._waiting,
    )
    self.state = self._observe(partner, reply)
    self._performance, frames, finite = self._performer.step(
      self._performance, reply, partner, text, effort
    )
    if not finite:
      frames = self._recover(frames)
    took = self._clock() - begun
    self.chunk_seconds.append(took)
    if self._pace is not None:
      self._pace.took(effort, took)
    if self.first_frame_seconds is None:
      self.first_frame_seconds = self._clock() - self._born
    return before, Chunk(
      index=self._made,
      seconds=self._made * samples / SAMPLE_RATE,
      frames=frames,
      reply=reply,
      partner=partner,
      state=self.state,
      text=text,
      held=not finite,
      effort=effort,
    )

  def _make_pace(self) -> Pace | None:
    if not self.settings.degrade:
      return None
    missing = set(self._performer.efforts) - set(self._performer.effort_seconds)
    if missing:
      names = ", ".join(sorted(effort.name for effort in missing))
      raise ValueError(f"degrade: found a performer not warmed up with {names}, expected all")
    return Pace(self._performer.effort_seconds)

  def _choose_effort(self, now: float) -> Effort:
    """The work for the next chunk: what is left of the time until it is needed decides."""
    effort = Effort.FULL
    if self._pace is not None and self._pulled_at is not None:
      length = self._performer.samples / SAMPLE_RATE
      effort = self._pace.choose(self._pulled_at + length * (1 + self.ready) - now)
    if effort is not self._effort:
      late = "late" if effort > self._effort else "in time again"
      logging.warning("chunk %d: compute is %s: %s effort", self._made, late, effort.name.lower())
    self._effort = effort
    self.counts.short += effort is Effort.SHORT
    self.counts.coarse += effort is Effort.COARSE
    return effort

  def _note_depths(self):
    """Queue depths and the speed of the partner, before a chunk is made."""
    self._depths["ready"].append(self.ready)
    for name, seconds in self.waiting_seconds().items():
      self._depths[f"waiting_{name}"].append(seconds)
    self._partner_speed.note()

  def _take_reply(self, samples: int) -> np.ndarray:
    """The reply of the next chunk: nothing while too little of it is there to begin with."""
    enough = self.settings.reply_start * SAMPLE_RATE
    speaking = self._gates["reply"].open
    if not self._reply_ended and not speaking and len(self._reply) < enough:
      return self._reply.take(0)
    reply = self._reply.take(samples)
    if not self._reply_ended:
      self.counts.reply_missing += samples - len(reply)
    return reply

  def _observe(self, partner: np.ndarray, reply: np.ndarray) -> State:
    """The state of a chunk from its sound; takes the time from a question to its answer."""
    start = self._made * self._performer.samples
    listening = self._gates["partner"].hear(partner)
    responding = self._gates["reply"].hear(reply)
    if not self._gates["partner"].open and self._gates["partner"].ended is not None:
      self._waiting = self._waiting or self._gates["partner"].ended
    if responding and self._waiting is not None:
      self.response_seconds.append(max(0, start - self._waiting) / SAMPLE_RATE)
      self._waiting, self._gates["partner"].ended = None, None
    if responding:
      return State.RESPONDING
    return State.LISTENING if listening else State.IDLE

  def _recover(self, frames: np.ndarray) -> np.ndarray:
    """After numbers that are not finite: the stream begins anew, the last frame is held."""
    self.counts.not_finite += 1
    logging.warning("chunk %d is not finite: its frame is held, the caches begin anew", self._made)
    self._performance, _ = self._begin()
    last = self._ready[-1][1].frames[-1] if self._ready else self._last
    return np.repeat(last[None], len(frames), axis=0)

  def _shortened(self, text: str) -> str:
    limit = self.settings.text_characters
    if len(text) > limit:
      self.counts.texts_cut += 1
      if self.counts.texts_cut == 1:
        logging.warning("text: found %d characters, kept the first %d", len(text), limit)
    return text[:limit]
