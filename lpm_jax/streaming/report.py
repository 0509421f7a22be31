"""What a session measures about itself: quantiles, and the speed of a source."""

import collections
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import logging

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.streaming.sound import Track

_WINDOW = 16  # chunks over which a source's speed is taken
_TOLERANCE = 1.1
_COMMON_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


def quantiles(
  name: str, values: Iterable[float], percents: Sequence[int]
) -> dict[str, float | None]:
  """`name_pN` for each of the percents; None for no values."""
  values = list(values)
  found = np.percentile(values, percents) if values else [None] * len(percents)
  return {
    f"{name}_p{p}": v if v is None else float(v) for p, v in zip(percents, found, strict=True)
  }


class Speed:
  """Seconds of sound that a track is sent in a second: 3 when 48 kHz is sent as 16 kHz.

  Only a source that is fast by the clock and by the time of the stream is called wrong: sound from
  files comes as fast as it is asked for, and while nobody pulls, time goes on without chunks.

  Args:
    track: that is watched.
    samples: of a chunk.
    clock: seconds, monotonic.
  """

  def __init__(self, track: Track, samples: int, clock: Callable[[], float]):
    self._track, self._samples, self._clock = track, samples, clock
    self._seen: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW + 1)
    self._warned = False

  def note(self):
    """Before each chunk."""
    self._seen.append((self._clock(), self._track.received))
    speed = self.seconds_a_second()
    if speed is not None and speed > _TOLERANCE and not self._warned:
      self._warned = True
      rate = min(_COMMON_RATES, key=lambda rate: abs(rate - speed * self._track.rate))
      logging.warning(
        "%s: sends %.2f s of sound a second at a claimed rate of %d Hz: is it %d Hz?",
        *(self._track.name, speed, self._track.rate, rate),
      )

  def seconds_a_second(self) -> float | None:
    """By the clock or by the stream, what is nearer to 1; None for the first chunks."""
    if len(self._seen) <= _WINDOW:
      return None
    clock, received = np.diff(np.array(self._seen), axis=0).T  # packets that pile up come at once:
    seconds = float(np.median(received)) / SAMPLE_RATE  # the median chunk knows nothing of them
    speeds = [seconds / (self._samples / SAMPLE_RATE)]
    if np.median(clock) > 0:
      speeds.append(seconds / float(np.median(clock)))
    return min(speeds, key=lambda speed: abs(speed - 1.0))
