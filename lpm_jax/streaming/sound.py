"""Sound on its way into a stream: packets that wait for their chunk, in the bounds of a track."""

import collections

import numpy as np
import soxr

from data_pipelines.clip import SAMPLE_RATE

RATES = (8_000, 192_000)
_JITTER = 0.04  # seconds by which times of packets may lie off before the sound is moved
_RESERVE = SAMPLE_RATE // 20  # least samples that wait behind a chunk, once there were too few
_LOOK_BACK = 8  # chunks over which that backlog is the smallest


class Track:
  """Packets of any rate in, 16 kHz out; never holds more than `limit` seconds.

  A packet that does not fit pushes the oldest sound out, which `dropped` counts: a source that
  claims a wrong rate costs sound and not memory.

  Args:
    name: of the track, for errors.
    limit: seconds that may wait.
    bend: largest share by which `take_bent` plays faster or slower than real time.

  Attributes:
    received, dropped: samples so far.
    filled, repeated: samples of silence put in, and of sound left out, because times said so.
    jumps: how often the clock of the source began anew.
    bent: samples by which sound was made shorter (positive) or longer, both counted as positive.
  """

  def __init__(self, name: str, limit: float, bend: float = 0.0):
    self.name, self.limit, self._bend = name, round(limit * SAMPLE_RATE), bend
    self.received = self.dropped = self.filled = self.repeated = self.jumps = self.bent = 0
    self.started = False
    self.rate = SAMPLE_RATE
    self._packets: collections.deque[np.ndarray] = collections.deque()
    self._length = 0
    self._resampler: soxr.ResampleStream | None = None
    self._due: float | None = None  # time of the next packet, by the clock of the source
    self._owed = 0  # samples that were asked for in vain since the last packet
    self._left: collections.deque[int] = collections.deque(maxlen=_LOOK_BACK)
    self._packet = 0  # samples of the last one
    self._short = False  # whether a chunk ever had some sound, but too little

  def __len__(self) -> int:
    return self._length

  def push(self, packet: np.ndarray, rate: int = SAMPLE_RATE, at: float | None = None):
    """Takes mono samples in: int16, or floats in [-1, 1].

    Args:
      packet: [S].
      rate: of the samples, Hz.
      at: time of the first one by the clock of the source, seconds. A gap becomes silence, less
        what was missed while it was waited for; sound that comes again is left out. A step of more
        than `limit` seconds, either way, is a clock that begins anew: nothing is moved.

    Raises ValueError, and takes nothing in, for samples of another kind or shape, samples or times
    that are not finite and rates that no voice source has.
    """
    packet = np.asarray(packet)
    if packet.ndim != 1 or packet.dtype not in (np.int16, np.float32, np.float64):
      raise ValueError(
        f"{self.name}: found {packet.dtype} {packet.shape}, expected int16 or floats [S], mono"
      )
    if not RATES[0] <= rate <= RATES[1]:
      raise ValueError(f"{self.name}: rate: found {rate}, expected {RATES[0]} to {RATES[1]} Hz")
    if at is not None and not np.isfinite(at):
      raise ValueError(f"{self.name}: at: found {at}, expected seconds")
    packet = packet / np.float32(32768) if packet.dtype == np.int16 else packet.astype(np.float32)
    if not np.isfinite(packet).all():
      raise ValueError(f"{self.name}: found samples that are not finite")
    if rate != self.rate:
      self.rate = rate
      self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None
    if at is not None:
      packet = self._in_place(packet, rate, at)
    self._owed = 0
    if self._resampler is not None:
      packet = self._resampler.resample_chunk(packet)
    if not len(packet):
      return
    self.started = True
    self.received += len(packet)
    self._packets.append(np.clip(packet, -1.0, 1.0))
    self._length += len(packet)
    self._packet = len(packet)
    self._trim()

  def take(self, count: int) -> np.ndarray:
    """The oldest samples, at most `count`."""
    taken, missing = [], min(max(count, 0), self._length)
    self._owed += max(count, 0) - missing
    self._length -= missing
    while missing:
      packet = self._packets.popleft()
      if len(packet) > missing:
        self._packets.appendleft(packet[missing:])
      taken.append(packet[:missing])
      missing -= len(taken[-1])
    return np.concatenate(taken) if taken else np.zeros(0, np.float32)

  def take_bent(self, count: int) -> np.ndarray:
    """As `take`; a source whose clock is a little fast or slow is played at its own speed.

    Once a chunk was short, up to `bend` fewer samples are played in the time of `count` until 0.05
    s, or one and a half packets, wait behind it. When twice as much waited behind each of the last
    8 chunks, up to `bend` more are. So a drifting source costs neither latency nor sound.
    """
    left, most = self._length - count, int(self._bend * count)
    self._left.append(left)
    self._short = self._short or 0 < self._length < count
    reserve = max(_RESERVE, 3 * self._packet // 2)
    fast = min(self._left) - 2 * reserve if len(self._left) == _LOOK_BACK else 0
    slow = reserve - left if self._short else 0
    bend = min(fast, most) if fast > 0 else -min(max(slow, 0), most)
    if not bend or self._length < count + bend:
      return self.take(count)
    self.bent += abs(bend)
    return _played_in(self.take(count + bend), count)

  def put_back(self, samples: np.ndarray):
    """Undoes a `take`."""
    self._packets.appendleft(samples)
    self._length += len(samples)
    self._left.clear()
    self._trim()

  def clear(self):
    """Forgets what waits."""
    self._packets.clear()
    self._left.clear()
    self._length, self._due, self._owed = 0, None, 0

  def _in_place(self, packet: np.ndarray, rate: int, at: float) -> np.ndarray:
    """The packet with silence before it, or without its beginning, as its time says."""
    step = 0.0 if self._due is None else at - self._due
    end = at + len(packet) / rate
    if abs(step) <= _JITTER:  # counted on, not set anew, so that small steps add up and are seen
      self._due = (at if self._due is None else self._due) + len(packet) / rate
      return packet
    if abs(step) > self.limit / SAMPLE_RATE:
      self.jumps += 1
      self._due = end
      return packet
    self._due = max(self._due, end)
    if step < 0:
      again = min(round(-step * rate), len(packet))
      self.repeated += round(again * SAMPLE_RATE / rate)
      return packet[again:]
    gap = max(0.0, step - self._owed / SAMPLE_RATE)
    self.filled += round(gap * SAMPLE_RATE)
    return np.concatenate([np.zeros(round(gap * rate), np.float32), packet])

  def _trim(self):
    self.dropped += len(self.take(self._length - self.limit))


def _played_in(samples: np.ndarray, count: int) -> np.ndarray:
  """Samples [S] at another speed, [count]: cubic interpolation, S and `count` nearly the same."""
  place = np.arange(count) * (len(samples) / count)
  whole = place.astype(int)
  t = (place - whole).astype(np.float32)
  last = len(samples) - 1
  a, b, c, d = (samples[np.clip(whole + i, 0, last)] for i in (-1, 0, 1, 2))
  return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
