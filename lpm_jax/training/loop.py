"""The one training loop: what the config names is built, resumed, trained, sampled and exported."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from absl import logging
from clu import parameter_overview
from etils import epath
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines import loader
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.options import options_of
from lpm_jax.parallel.sharding import shard_batch, tree_shardings
from lpm_jax.training import hooks
from lpm_jax.training.checkpoints import Checkpoints, Restored, abstract, check_writable
from lpm_jax.training.distributed import Restart
from lpm_jax.training.goodput import Goodput
from lpm_jax.training.guard import BadStepError, Guard, read_guard, skipping, with_limits
from lpm_jax.training.optimiser import optimiser_of
from lpm_jax.training.preemption import PreemptionNotice
from lpm_jax.training.state import TrainState, averaged_model, create_state
from lpm_jax.training.step import CompiledStep, make_step
from lpm_jax.training.task import Task, make_task
from lpm_jax.training.watchdog import Watchdog
from lpm_jax.weights import loading, shipped


@dataclasses.dataclass
class Setup:
  """A task on a mesh, ready to step."""

  task: Task
  mesh: Mesh
  graphdef: nnx.GraphDef
  optimiser: optax.GradientTransformation
  state: TrainState


def prepare(config: ConfigDict) -> Setup:
  """Builds the initial state: shapes first, then shardings, then arrays where they belong."""
  task = make_task(config)
  mesh = make_mesh(config.sharding.mesh, slices=config.sharding.get("slices"))
  optimiser = optimiser_of(task, config)

  def init() -> TrainState:
    return create_state(task.build(nnx.Rngs(config.seed)), optimiser)

  graphdef = nnx.graphdef(nnx.eval_shape(lambda: task.build(nnx.Rngs(config.seed))))
  shardings = tree_shardings(jax.eval_shape(init), mesh, config.sharding.rules)
  state = jax.jit(init, out_shardings=shardings)()
  if config.get("init"):
    fill = loading.initialiser(config.init, config.export)
  else:
    fill = task.initialiser() if hasattr(task, "initialiser") else None
  if fill:
    state = _filled(state, graphdef, fill)
  return Setup(task, mesh, graphdef, optimiser, state)


def _filled(
  state: TrainState, graphdef: nnx.GraphDef, fill: Callable[[nnx.Module], object]
) -> TrainState:
  """The state with parameters, average and other variables as `fill` leaves them in the module."""
  module = averaged_model(graphdef, jax.tree.map(jnp.copy, state))
  fill(module)
  _, params, rest = nnx.split(module, nnx.Param, ...)
  placed = functools.partial(jax.tree.map, lambda new, old: jax.device_put(new, old.sharding))
  return dataclasses.replace(
    state,
    params=placed(params, state.params),
    ema=placed(jax.tree.map(jnp.copy, params), state.ema),
    rest=placed(rest, state.rest),
  )


def make_batches(task: Task, config: ConfigDict):
  """The iterator over this process's rows of the global batches."""
  has_stages = hasattr(task, "stages")
  return loader.batches(
    task.stages(config.seed) if has_stages else task.dataset(config.seed),
    seed=config.seed,
    batch_size=config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def train(config: ConfigDict, workdir: str, *, begun: float | None = None) -> TrainState:
  """Trains what `config` describes in `workdir`, continuing from the newest whole checkpoint there.

  Returns the last state; leaves checkpoints, metrics.jsonl, TensorBoard files, samples, goodput
  and, once all steps are done, workdir/weights/EXPORT.safetensors. Raises BadStepError naming the
  step where `config.guard` does not go on (the checkpoint before it is kept), CheckpointError when
  the workdir cannot be written or holds another model, Restart after SIGTERM. Of several processes
  (`distributed.start`), one that fails ends all.

  Args:
    begun: Unix time at which the process began, for the accounting; None is now.
  """
  goodput = Goodput(workdir, begun=begun, job=config.get("goodput_job", ""))
  with contextlib.ExitStack() as stack:
    watchdog = stack.enter_context(
      Watchdog(
        workdir,
        at_end=lambda phase, seconds: goodput.write((phase, seconds)),
        **dict(config.get("watchdog") or {}),
      )
    )
    notice = stack.enter_context(PreemptionNotice())
    try:
      check_writable(workdir)
      setup = prepare(config)
      checkpoints = Checkpoints(
        workdir, config.to_json(), keep=config.checkpoint.keep, local=config.checkpoint.get("local")
      )
      stack.callback(checkpoints.close)
      writer = hooks.MetricWriter(workdir)
      stack.callback(writer.close)
      stack.callback(lambda: print(goodput.close() or "", end="\n" * (jax.process_index() == 0)))
      run = _Run(config, workdir, setup, checkpoints, writer, goodput, watchdog, notice)
      state = run.run()
      if int(state.step) >= config.steps:
        run.enter("export", int(state.step))
        export(config, workdir, setup, state)
    except BadStepError as error:  # all processes alike
      newest = checkpoints.newest()
      raise type(error)(f"{error}; newest checkpoint: step {newest}", error.step) from error
    except Exception as error:
      watchdog.fail(error)
      raise
  return state


class _Run:
  """One start of a run: from its newest checkpoint to the end, an error, or a notice."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: str,
    setup: Setup,
    checkpoints: Checkpoints,
    writer: hooks.MetricWriter,
    goodput: Goodput,
    watchdog: Watchdog,
    notice: PreemptionNotice,
  ):
    self.config, self.workdir, self.setup = config, workdir, setup
    self.checkpoints, self.writer = checkpoints, writer
    self.goodput, self.watchdog, self.notice = goodput, watchdog, notice
    self.guard = Guard(read_guard(config))
    self.averages = hooks.Averages(self.guard)
    self.speed = hooks.Speed(config.batch_size)
    self.profile = hooks.ProfileWindow(workdir, config.get("profile"))
    self.deadline = time.monotonic() + 60 * (config.get("max_minutes") or 1e9)
    self.rewinds = _Rewinds(self.guard.config.limit)

  def enter(self, phase: str, step: int):
    """Another phase begins: for the accounting and for the watchdog."""
    self.goodput.enter(phase, step)
    self.watchdog.enter(phase, step)

  def run(self) -> TrainState:
    """Returns the last state."""
    state, self.setup.state = self.setup.state, None  # donated below
    self.like = abstract(state)
    self.batches = make_batches(self.setup.task, self.config)
    restored = self.checkpoints.restore(state)
    if restored:
      state = self._take(restored)
    self.first = int(state.step)
    self.goodput.resumed(self.first)
    logging.info("parameters: %d", parameter_overview.count_parameters(_plain(state.params)))
    if self.first >= self.config.steps:
      return state
    step_fn = make_step(
      self.setup.task,
      self.setup.graphdef,
      self.setup.optimiser,
      seed=self.config.seed,
      ema_decay=self.config.optimiser.ema,
      accumulate=self.config.get("accumulate", 1),
      rules=self.config.sharding.rules,
    )
    self.skips = self.guard.config.policy == "skip"
    step_fn = skipping(step_fn) if self.skips else step_fn
    self.compiled = CompiledStep(
      step_fn, self.setup.mesh, _compiler_options(self.config, self.workdir)
    )
    if self.first == 0:
      self._sample(state, 0)
    while True:
      try:
        return self._steps(state)
      except BadStepError as error:
        if self.guard.config.policy != "rewind":
          raise
        del state  # its buffers make room for the restored ones
        state = self._rewound(error)
      finally:
        self.profile.close()

  def _take(self, restored: Restored) -> TrainState:
    self.batches.set_state(restored.data)
    self.guard.set_state(restored.guard)
    return restored.state

  def _steps(self, state: TrainState) -> TrainState:
    config, begin = self.config, int(state.step)
    batch = self._next_batch(begin)
    self.speed.restart(begin)
    bar = tqdm(
      total=config.steps,
      initial=begin,
      desc=f"train {config.task.rpartition('.')[2]}",
      unit="step",
      disable=jax.process_index() > 0,
    )
    with bar:
      for step in range(begin, config.steps):
        if self.profile.changes(step - self.first):
          self.enter("profile", step)
          self.averages.settle()
          self.profile.turn()
          self.speed.restart(step)
        if self.skips:
          batch = with_limits(batch, self.guard.limits(step), self.setup.mesh)
        self.enter("compile", step)
        if self.compiled.prepare(state, batch):
          self.speed.restart(step)
        self.enter("step", step)
        state, metrics = self.compiled(state, batch)
        self.averages.add(step, metrics)
        done = step + 1
        self.goodput.finished(done)
        bar.update()
        if time.monotonic() > self.deadline:
          self.notice.stop()
        ends = self.notice.reached(done)
        last = done == config.steps or (ends and self.notice.is_stop())
        if done % config.evaluation.log_every == 0 or last or ends or done == begin + 1:
          self._log(done, bar)
        data_state = self.batches.get_state()
        if not last and not ends:
          batch = self._next_batch(done)
        self._save(done, state, data_state, always=last or ends)
        if ends and not last:
          self.checkpoints.wait()
          raise Restart(f"SIGTERM: step {done} is saved")
        if done % max(config.evaluation.sample_every, 1) == 0 or last:
          self._sample(state, done)
          self.speed.restart(done)
        if last:
          break
    if done < config.steps:
      logging.warning("stopped after max_minutes at step %d", done)
    return state

  def _next_batch(self, step: int) -> dict[str, jax.Array]:
    self.enter("data", step)
    batch = shard_batch(next(self.batches), self.setup.mesh)
    if not self.averages.is_idle():
      self.goodput.overlapped()
    return batch

  def _log(self, done: int, bar: tqdm):
    row = self.averages.read()
    row |= self.speed.read(done, self.compiled.flops)
    found = self.goodput.read()
    self.writer.write_scalars(done, row | ({"goodput": found["goodput"]} if found else {}))
    self.goodput.write()
    bar.set_postfix(loss=f"{row.get('loss', math.nan):.4f}")

  def _save(self, done: int, state: TrainState, data_state: dict, *, always: bool):
    local = self.checkpoints.local_every
    is_local = local and done % local == 0
    if always or is_local or done % self.config.checkpoint.every == 0:
      self.averages.settle()  # only good states are kept
      self.enter("checkpoint", done)
      if always or done % self.config.checkpoint.every == 0:
        self.checkpoints.save(done, state, data_state, self.guard.get_state())
      else:
        self.checkpoints.save_local(done, state, data_state, self.guard.get_state())
      self.writer.flush()

  def _rewound(self, error: BadStepError) -> TrainState:
    """The state of the checkpoint before a bad step; the data goes on after that step's batch."""
    self.enter("start", error.step)
    self.averages.forget()
    restored = self.checkpoints.restore(self.like)
    if restored is None:
      raise error
    back = int(restored.state.step)
    state = self._take(restored)
    for _ in range(self.rewinds.batches_left_out(error, back)):
      next(self.batches)
    self.goodput.resumed(back)
    logging.warning("%s; back to step %d, without the batches up to the bad one", error, back)
    self.writer.write_scalars(error.step, {"rewound_to": back})
    return state

  def _sample(self, state: TrainState, step: int):
    if hasattr(self.setup.task, "sample") and self.config.evaluation.sample_every > 0:
      self.enter("sample", step)
      model = averaged_model(self.setup.graphdef, state)
      row = self.setup.task.sample(model, self.workdir, step)
      if row:
        self.writer.write_scalars(step, row)


def _compiler_options(config: ConfigDict, workdir: str) -> dict[str, str]:
  """Those of a TPU run, which are also written to workdir/compiler_options.json."""
  if jax.default_backend() != "tpu" or not config.get("topology"):
    return {}
  found = options_of(config)
  if jax.process_index() == 0:
    (epath.Path(workdir) / "compiler_options.json").write_text(json.dumps(found, indent=1))
  return found


class _Rewinds:
  """How often a run went back to a checkpoint, and which batches after it are left out."""

  def __init__(self, limit: int):
    self._limit = limit
    self._back, self._times, self._left_out = -1, 0, 0

  def batches_left_out(self, error: BadStepError, back: int) -> int:
    """Batches to pass over after the checkpoint of step `back`. Raises `error` beyond the limit."""
    if back != self._back:
      self._back, self._times, self._left_out = back, 0, 0
    self._times += 1
    if self._times > self._limit:
      text = f"{error}; went back to step {back} {self._limit} times, guard.limit is exceeded"
      raise type(error)(text, error.step)
    self._left_out += error.step + 1 - back
    return self._left_out


def _plain(params: nnx.State) -> dict:
  return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}


def export(config: ConfigDict, workdir: str | os.PathLike, setup: Setup, state: TrainState):
  """Finishes the averaged model and writes workdir/weights/EXPORT.safetensors (process 0)."""
  if jax.process_count() > 1:
    state = dataclasses.replace(state, ema=process_allgather(state.ema, tiled=True))
  model = averaged_model(setup.graphdef, state)
  if hasattr(setup.task, "finish"):
    setup.task.finish(model)
  if hasattr(setup.task, "exported"):
    model = setup.task.exported(model)
  if jax.process_index() > 0:
    return
  name = f"{config.export}.safetensors"
  if "://" not in str(workdir):
    path = pathlib.Path(workdir) / "weights" / name
    shipped.save_module(path, model, config=setup.task.config_dict())
    return
  with tempfile.TemporaryDirectory() as folder:  # safetensors writes to disks alone
    shipped.save_module(pathlib.Path(folder) / name, model, config=setup.task.config_dict())
    target = epath.Path(workdir) / "weights" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    epath.Path(folder, name).copy(target, overwrite=True)
