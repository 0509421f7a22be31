"""Sound on its way into a stream: packets that wait for their chunk, and who speaks when."""

import collections
import dataclasses

import numpy as np
import soxr

from data_pipelines.clip import SAMPLE_RATE

RATES = (8_000, 192_000)
_BLOCK = SAMPLE_RATE // 50  # 20 ms, over which loudness is taken


class Track:
  """Packets of any rate in, 16 kHz out; never holds more than `limit` seconds.

  A packet that does not fit pushes the oldest sound out, which `dropped` counts: a source that runs
  fast, or that claims a wrong rate, costs sound and not memory.

  Args:
    name: of the track, for errors.
    limit: seconds that may wait.
  """

  def __init__(self, name: str, limit: float):
    self.name, self.limit = name, round(limit * SAMPLE_RATE)
    self.dropped = 0
    self.started = False
    self._packets: collections.deque[np.ndarray] = collections.deque()
    self._length = 0
    self._rate, self._resampler = SAMPLE_RATE, None

  def __len__(self) -> int:
    return self._length

  def push(self, packet: np.ndarray, rate: int = SAMPLE_RATE):
    """Takes mono samples in: int16, or floats in [-1, 1].

    Raises ValueError, and takes nothing in, for samples of another kind or shape, samples that are
    not finite and rates that no voice source has.
    """
    packet = np.asarray(packet)
    if packet.ndim != 1 or packet.dtype not in (np.int16, np.float32, np.float64):
      raise ValueError(
        f"{self.name}: found {packet.dtype} {packet.shape}, expected int16 or floats [S], mono"
      )
    if not RATES[0] <= rate <= RATES[1]:
      raise ValueError(f"{self.name}: rate: found {rate}, expected {RATES[0]} to {RATES[1]} Hz")
    packet = packet / np.float32(32768) if packet.dtype == np.int16 else packet.astype(np.float32)
    if not np.isfinite(packet).all():
      raise ValueError(f"{self.name}: found samples that are not finite")
    if rate != self._rate:
      self._rate = rate
      self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None
    if self._resampler is not None:
      packet = self._resampler.resample_chunk(packet)
    self.started = self.started or len(packet) > 0
    self._packets.append(np.clip(packet, -1.0, 1.0))
    self._length += len(packet)
    self._trim()

  def take(self, count: int) -> np.ndarray:
    """The oldest samples, at most `count`."""
    taken, missing = [], min(max(count, 0), self._length)
    self._length -= missing
    while missing:
      packet = self._packets.popleft()
      if len(packet) > missing:
        self._packets.appendleft(packet[missing:])
      taken.append(packet[:missing])
      missing -= len(taken[-1])
    return np.concatenate(taken) if taken else np.zeros(0, np.float32)

  def put_back(self, samples: np.ndarray):
    """Undoes a `take`."""
    self._packets.appendleft(samples)
    self._length += len(samples)
    self._trim()

  def clear(self):
    """Forgets what waits."""
    self._packets.clear()
    self._length = 0

  def _trim(self):
    self.dropped += len(self.take(self._length - self.limit))


@dataclasses.dataclass(frozen=True)
class GateSettings:
  """When sound counts as speech.

  Attributes:
    floor: least loudness (RMS, full scale 1) that is taken for the noise of the room.
    opening, closing: multiples of the noise at which speech begins, and below which it may end.
    hold: seconds below `closing` after which it has ended.
    memory: seconds over which the noise is learned, as the 10th percentile of loudness.
  """

  floor: float = 0.001
  opening: float = 3.0
  closing: float = 1.8
  hold: float = 0.5
  memory: float = 10.0


class SpeechGate:
  """Whether somebody speaks, from energy with hysteresis.

  Attributes:
    open: whether speech is on.
    ended: sample at which the last speech ended (its last loud block), None before the first.
  """

  def __init__(self, settings: GateSettings | None = None):
    self.settings = settings or GateSettings()
    self.open, self.ended = False, None
    self._rest = np.zeros(0, np.float32)
    self._heard = 0
    self._last_loud = 0
    blocks = round(self.settings.memory * SAMPLE_RATE / _BLOCK)
    quiet = [self.settings.floor] * (blocks // 10)  # who speaks at once is heard, too
    self._levels = collections.deque(quiet, maxlen=blocks)

  def hear(self, samples: np.ndarray) -> bool:
    """Whether any block of these samples [S] is part of speech."""
    samples = np.concatenate([self._rest, samples])
    whole = len(samples) // _BLOCK * _BLOCK
    self._rest = samples[whole:]
    return any([self._block(block) for block in samples[:whole].reshape(-1, _BLOCK)])

  def memory(self) -> dict:
    """What it takes to go on from here, as plain facts."""
    facts = {"open": self.open, "ended": self.ended, "heard": self._heard}
    lists = {"rest": self._rest.tolist(), "levels": list(self._levels)}
    return facts | lists | {"last_loud": self._last_loud}

  def remember(self, facts: dict):
    """Goes on from what `memory` returned."""
    self.open, self.ended, self._heard = facts["open"], facts["ended"], facts["heard"]
    self._rest, self._last_loud = np.array(facts["rest"], np.float32), facts["last_loud"]
    self._levels.clear()
    self._levels.extend(facts["levels"])

  def _block(self, block: np.ndarray) -> bool:
    self._heard += len(block)
    level = float(np.sqrt(np.mean(np.square(block))))
    self._levels.append(level)
    noise = max(self.settings.floor, float(np.percentile(self._levels, 10)))
    if level > noise * (self.settings.closing if self.open else self.settings.opening):
      self.open, self._last_loud = True, self._heard
    elif self.open and self._heard - self._last_loud >= self.settings.hold * SAMPLE_RATE:
      self.open, self.ended = False, self._last_loud
    return self.open
