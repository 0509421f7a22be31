"""What happens beside the step: metric files, speed and MFU, judged averages, profiles."""

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from tensorboardX import SummaryWriter

from lpm_jax.training.guard import Guard, GuardConfig

# Dense bf16 peak per chip in FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


class MetricWriter:
  """Scalars to workdir/metrics.jsonl, TensorBoard and the log; writes on process 0 only.

  Has the `write_scalars`, `flush` and `close` of `clu.metric_writers.MetricWriter`, whose package
  cannot be imported without TensorFlow.
  """

  def __init__(self, workdir: str | os.PathLike):
    self._first = jax.process_index() == 0
    if self._first:
      self._file = (epath.Path(workdir) / "metrics.jsonl").open("a")
      self._board = SummaryWriter(os.fspath(workdir), max_queue=1000, flush_secs=120)

  def write_scalars(self, step: int, scalars: Mapping[str, float]):
    """Writes one row of scalars by name."""
    if not self._first:
      return
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()  # a kill loses no row and cuts none
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    logging.info("[%d] %s", step, ", ".join(f"{k}={v:.6g}" for k, v in scalars.items()))

  def flush(self):
    """Everything written so far reaches the disk."""
    if self._first:
      self._file.flush()
      self._board.flush()

  def close(self):
    """Flushes and closes the files."""
    if self._first:
      self._file.close()
      self._board.close()


def jaxpr_flops(jaxpr: Any) -> int:
  """Multiply-adds of matrix products and convolutions, times two; loops count every turn.

  (XLA's own cost analysis counts the body of a scan once.)
  """
  total = 0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      (contract, _), _ = params["dimension_numbers"]
      left = eqn.invars[0].aval.shape
      total += 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contract)
    elif name == "conv_general_dilated":
      kernel = eqn.invars[1].aval.shape
      out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
      total += 2 * eqn.outvars[0].aval.size * math.prod(kernel) // out_features
    else:
      turns = params.get("length", 1) if name == "scan" else 1
      total += turns * sum(map(jaxpr_flops, _inner(params)))
  return total


def _inner(params: dict) -> list:
  """The jaxprs among the parameters of an equation."""
  found = []
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      item = getattr(item, "jaxpr", item)
      if hasattr(item, "eqns"):
        found.append(item)
  return found


def peak_flops() -> float:
  """Peak FLOP/s of one device: the data sheet's, else what a matrix product reaches here."""
  kind = jax.devices()[0].device_kind
  known = [peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)]
  if known:
    return known[0]
  x = jnp.ones((1024, 1024), jnp.float32)
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  seconds = []
  for _ in range(5):
    begin = time.perf_counter()
    product(x).block_until_ready()
    seconds.append(time.perf_counter() - begin)
  return 2 * 1024**3 / min(seconds) / jax.local_device_count()


class Speed:
  """Step time, examples per second and MFU since the last reading.

  Args:
    batch_size: global examples per step.
  """

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self._peak = peak_flops() * jax.device_count()
    self.restart(0)

  def restart(self, step: int):
    """Starts the clock; call it after anything that is no training (sampling, compilation)."""
    self._step, self._time = step, time.perf_counter()

  def read(self, step: int, flops: float) -> dict[str, float]:
    """The three numbers, for steps of `flops` over all devices; restarts the clock."""
    seconds = (time.perf_counter() - self._time) / max(step - self._step, 1)
    self.restart(step)
    return {
      "step_seconds": seconds,
      "clips_per_second": self._batch_size / seconds,
      "mfu": flops / (self._peak * seconds),
    }


class Averages:
  """Metrics of the steps since the last reading, kept on the device until they are read.

  Args:
    guard: judges each step; without one, what is not finite raises.
  """

  def __init__(self, guard: Guard | None = None):
    self._guard = guard or Guard(GuardConfig())
    self._pending: list[tuple[int, dict]] = []
    self._checked: list[dict[str, float]] = []
    self._skipped = 0

  def add(self, step: int, metrics: dict):
    """Takes the metrics of a step and checks those of the step before, which are ready by now."""
    self._pending.append((step, metrics))
    if len(self._pending) > 1:
      self._check(1)

  def is_idle(self) -> bool:
    """Whether the newest step has ended, so that the devices have nothing to do."""
    return not self._pending or all(
      value.is_ready() for value in jax.tree.leaves(self._pending[-1][1])
    )

  def settle(self):
    """Checks every step taken so far; raises BadStepError naming the first bad one."""
    self._check(0)

  def forget(self):
    """Drops what was not read."""
    self._pending, self._checked, self._skipped = [], [], 0

  def read(self) -> dict[str, float]:
    """Means over the good steps since the last call, and how many were skipped; settles first."""
    self.settle()
    rows, self._checked = self._checked, []
    names = rows[0] if rows else ()
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    skipped, self._skipped = self._skipped, 0
    return means | ({"skipped": skipped} if self._guard.config.policy == "skip" else {})

  def _check(self, leave: int):
    while len(self._pending) > leave:
      step, metrics = self._pending.pop(0)
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      if self._guard.accepts(step, values):
        self._checked.append(values)
      else:
        self._skipped += 1


class ProfileWindow:
  """Traces of some steps into workdir/profile, for TensorBoard or Perfetto; process 0 alone.

  Args:
    settings: `config.profile`: `start`, steps after the first one of this start of the run (the
      first compiles); `steps` in a window, 0 is none; `every`, steps from one window to the next,
      0 is once.
  """

  def __init__(self, workdir: str | os.PathLike, settings: Mapping | None):
    settings = dict(settings or {})
    self._steps = settings.get("steps", 0) if jax.process_index() == 0 else 0
    self._start, self._every = max(settings.get("start", 10), 1), settings.get("every", 0)
    self._folder = os.fspath(epath.Path(workdir) / "profile")
    self._traced = False

  def changes(self, done: int) -> bool:
    """Whether a window begins or ends before step `done` (counted from this start of the run)."""
    inside = self._steps > 0 and done >= self._start
    since = done - self._start
    since = since % self._every if self._every else since
    return (inside and since < self._steps) != self._traced

  def turn(self):
    """Begins or ends a window; end it when the steps in it have ended."""
    if self._traced:
      jax.profiler.stop_trace()
    else:
      jax.profiler.start_trace(self._folder)
    self._traced = not self._traced

  def close(self):
    """Ends a window that is open."""
    if self._traced:
      self.turn()
