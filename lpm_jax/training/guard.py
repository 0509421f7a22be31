"""Steps that are not finite, or spikes: the run stops, skips them, or goes back before them."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lpm_jax.training.state import TrainState

POLICIES = ("stop", "skip", "rewind")
WATCHED = ("loss", "grad_norm")
LIMITS = "step_limits"  # the batch's entry that a skipping step reads


class BadStepError(ValueError):
  """A step that the policy does not accept. The message names step and metric.

  Attributes:
    step: its index.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


class NotFiniteError(BadStepError):
  """The loss or the gradient is NaN or infinite."""


class LossSpikeError(BadStepError):
  """The loss or the gradient norm is far above its running median."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """`config.guard`.

  Args:
    policy: "stop" ends the run; "skip" leaves the step out, while step counter and data go on;
      "rewind" goes back to the checkpoint before and on with the data after the bad step.
    spike: a loss or gradient norm above this many times its running median is bad too; 0: none is.
    window: good steps of the median; there is none before half of them.
    limit: most skipped steps in a row, or rewinds to one checkpoint; then the run stops.
  """

  policy: str = "stop"
  spike: float = 0.0
  window: int = 64
  limit: int = 10

  def __post_init__(self):
    if self.policy not in POLICIES:
      raise ValueError(f"guard.policy: found {self.policy!r}, expected one of {POLICIES}")
    if self.spike and self.spike <= 1.0:
      raise ValueError(f"guard.spike: found {self.spike}, expected more than 1, or 0")


def read_guard(config: ConfigDict) -> GuardConfig:
  """From a training config; without `guard`, runs stop at what is not finite."""
  return GuardConfig(**dict(config.get("guard") or {}))


class Guard:
  """Judges the metrics of each step, in order.

  The limits of a step come from steps that are at least two older: the newest whose metrics are
  always known when it is dispatched, so that they do not depend on timing or on a restart.
  """

  def __init__(self, config: GuardConfig):
    self.config = config
    self._history: list[tuple[int, float, float]] = []  # step, loss, gradient norm of good steps
    self._skipped = 0

  def limits(self, step: int) -> np.ndarray:
    """Highest loss and gradient norm of a good step, float32 [2]; infinite without spikes."""
    known = [values for at, *values in self._history if at <= step - 2][-self.config.window :]
    if not self.config.spike or len(known) < max(self.config.window // 2, 1):
      return np.full(2, np.inf, np.float32)
    return (self.config.spike * np.median(known, axis=0)).astype(np.float32)

  def accepts(self, step: int, metrics: Mapping[str, float]) -> bool:
    """Whether the step was good; False when it was skipped. Raises BadStepError otherwise."""
    limits = self.limits(step)
    bad = None
    for name, limit in zip(WATCHED, limits, strict=True):
      value = metrics[name]
      if not math.isfinite(value):
        bad = NotFiniteError(f"step {step}: {name} is {value}", step)
        break
      if np.float32(value) > limit:
        text = f"step {step}: {name} is {value:.4g}, {self.config.spike:g} medians are {limit:.4g}"
        bad = LossSpikeError(text, step)
        break
    if bad is None:
      self._skipped = 0
      self._history.append((step, *(metrics[name] for name in WATCHED)))
      del self._history[: -self.config.window - 2]
      return True
    if self.config.policy != "skip":
      raise bad
    self._skipped += 1
    if self._skipped > self.config.limit:
      raise type(bad)(f"{bad}; {self._skipped} steps in a row, guard.limit is exceeded", step)
    return False

  def get_state(self) -> list[list[float]]:
    """What a checkpoint keeps: plain numbers."""
    return [list(entry) for entry in self._history]

  def set_state(self, state: list[list[float]]):
    """Goes on from a checkpoint."""
    self._history = [(int(step), loss, norm) for step, loss, norm in state]
    self._skipped = 0


def with_limits(batch: dict, limits: np.ndarray, mesh: Mesh) -> dict:
  """The batch with the limits of its step, on all devices."""
  whole = NamedSharding(mesh, PartitionSpec())
  return {**batch, LIMITS: jax.make_array_from_callback((2,), whole, lambda index: limits[index])}


StepFunction = Callable[[TrainState, dict], tuple[TrainState, dict]]


def skipping(step_fn: StepFunction) -> StepFunction:
  """A step that leaves the state as it was, but for its counter, where its metrics are bad.

  The batch carries LIMITS. The schedule of the optimiser counts the steps that were applied.
  """

  def guarded(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    limits = batch[LIMITS]
    new, metrics = step_fn(state, {name: rows for name, rows in batch.items() if name != LIMITS})
    watched = jnp.stack([metrics[name].astype(jnp.float32) for name in WATCHED])
    good = (jnp.isfinite(watched) & (watched <= limits)).all()
    kept = jax.tree.map(lambda fresh, old: jnp.where(good, fresh, old), new, state)
    return dataclasses.replace(kept, step=new.step), metrics

  return guarded
