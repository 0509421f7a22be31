"""A performer without a model, and a clock without time, for what a session does by itself."""

import dataclasses

import numpy as np

from lpm_jax.streaming.effort import Effort


@dataclasses.dataclass
class FakeClock:
  """Seconds that pass only when somebody says so."""

  now: float = 0.0

  def __call__(self) -> float:
    return self.now


class FakePerformer:
  """Chunks of one second whose frames show their number; steps take time on the clock.

  Attributes:
    slowness: by how much longer than `effort_seconds` a step takes.
    heard: the partner's sound of each chunk.
  """

  fps, frames, samples, first = 24, 24, 16_000, 667
  efforts = tuple(Effort)

  def __init__(self, clock: FakeClock):
    self.clock, self.slowness = clock, 1.0
    self.effort_seconds = {Effort.FULL: 0.5, Effort.SHORT: 0.4, Effort.COARSE: 0.3}
    self.heard: list[np.ndarray] = []

  def begin(self, picture, references=(), text="", seed=0):
    return 0, picture

  def copied(self, performance):
    return performance

  def step(self, performance, speak, listen, text, effort=Effort.FULL):
    self.clock.now += self.effort_seconds[effort] * self.slowness
    self.heard.append(listen)
    return performance + 1, np.full((self.frames, 8, 8, 3), performance % 256, np.uint8), True
