"""Who speaks when, from the loudness of a track."""

import bisect
import collections
import copy
import dataclasses

import numpy as np

from data_pipelines.clip import SAMPLE_RATE

_BLOCK = SAMPLE_RATE // 50  # 20 ms, over which loudness is taken


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
    self._sorted = sorted(quiet)

  def copied(self) -> "SpeechGate":
    """A gate that goes on from here on its own."""
    other = copy.copy(self)
    other._levels, other._sorted = self._levels.copy(), self._sorted.copy()
    return other

  def hear(self, samples: np.ndarray) -> bool:
    """Whether any block of these samples [S] is part of speech."""
    samples = np.concatenate([self._rest, samples])
    whole = len(samples) // _BLOCK * _BLOCK
    self._rest = samples[whole:]
    blocks = samples[:whole].reshape(-1, _BLOCK)
    levels = np.sqrt(np.mean(np.square(blocks), axis=1)).tolist()
    return any([self._block(level) for level in levels])

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
    self._sorted = sorted(self._levels)

  def _block(self, level: float) -> bool:
    self._heard += _BLOCK
    noise = max(self.settings.floor, self._noise(level))
    if level > noise * (self.settings.closing if self.open else self.settings.opening):
      self.open, self._last_loud = True, self._heard
    elif self.open and self._heard - self._last_loud >= self.settings.hold * SAMPLE_RATE:
      self.open, self.ended = False, self._last_loud
    return self.open

  def _noise(self, level: float) -> float:
    """Takes a level in; the 10th percentile of those in memory, between its two neighbours."""
    if len(self._levels) == self._levels.maxlen:
      del self._sorted[bisect.bisect_left(self._sorted, self._levels[0])]
    self._levels.append(level)
    bisect.insort(self._sorted, level)
    whole, part = divmod((len(self._sorted) - 1) * 0.1, 1.0)
    low, high = (self._sorted[min(int(whole) + i, len(self._sorted) - 1)] for i in (0, 1))
    return low + part * (high - low)
