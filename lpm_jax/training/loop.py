"""The one training loop: what the config names is built, resumed, trained, sampled and exported."""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from absl import logging
from clu import parameter_overview
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines import loader
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import shard_batch, tree_shardings
from lpm_jax.training import hooks
from lpm_jax.training.checkpoints import Checkpoints, check_writable
from lpm_jax.training.optimiser import make_optimiser
from lpm_jax.training.state import TrainState, averaged_model, create_state
from lpm_jax.training.step import CompiledStep, make_step
from lpm_jax.training.task import Task, make_task
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
  mesh = make_mesh(config.sharding.mesh)
  stages = task.learning_rates() if hasattr(task, "learning_rates") else ()
  optimiser = make_optimiser(config.optimiser, config.steps, stages)

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


def train(config: ConfigDict, workdir: str) -> TrainState:
  """Trains what `config` describes in `workdir`, continuing from the newest whole checkpoint there.

  Returns the last state; leaves checkpoints, metrics.jsonl, TensorBoard files, samples and, once
  all steps are done, workdir/weights/EXPORT.safetensors. Raises NotFiniteError naming the step when
  the loss or the gradient is not finite (the checkpoint before it is kept), CheckpointError when
  the workdir cannot be written or holds another model.
  """
  check_writable(workdir)
  setup = prepare(config)
  checkpoints = Checkpoints(workdir, config.to_json(), keep=config.checkpoint.keep)
  writer = hooks.MetricWriter(workdir)
  try:
    state = _run(config, workdir, setup, checkpoints, writer)
  except hooks.NotFiniteError as error:
    raise hooks.NotFiniteError(
      f"{error}; newest checkpoint: step {checkpoints.newest()}"
    ) from error
  finally:
    checkpoints.close()
    writer.close()
  if int(state.step) >= config.steps:
    export(config, workdir, setup, state)
  return state


def _run(
  config: ConfigDict,
  workdir: str,
  setup: Setup,
  checkpoints: Checkpoints,
  writer: hooks.MetricWriter,
) -> TrainState:
  state, setup.state = setup.state, None  # donated below
  batches = make_batches(setup.task, config)
  restored = checkpoints.restore(state)
  if restored:
    state, data_state, _ = restored
    batches.set_state(data_state)
  begin = int(state.step)
  logging.info("parameters: %d", parameter_overview.count_parameters(_plain(state.params)))
  if begin >= config.steps:
    return state
  data_state = batches.get_state()
  batch = shard_batch(next(batches), setup.mesh)
  step_fn = make_step(
    setup.task,
    setup.graphdef,
    setup.optimiser,
    seed=config.seed,
    ema_decay=config.optimiser.ema,
    accumulate=config.get("accumulate", 1),
  )
  compiled = CompiledStep(step_fn)
  averages = hooks.Averages()
  speed = hooks.Speed(config.batch_size)
  deadline = time.monotonic() + 60 * (config.get("max_minutes") or 1e9)
  sample = functools.partial(_sample, config, workdir, setup, writer)
  if begin == 0:
    sample(state, 0)
  speed.restart(begin)
  bar = tqdm(
    total=config.steps,
    initial=begin,
    desc=f"train {config.task.rpartition('.')[2]}",
    unit="step",
    disable=jax.process_index() > 0,
  )
  with bar:
    for step in range(begin, config.steps):
      if compiled.prepare(state, batch):
        speed.restart(step)
      state, metrics = compiled(state, batch)
      averages.add(step, metrics)
      done = step + 1
      bar.update()
      late = time.monotonic() > deadline
      last = done == config.steps or late
      if done % config.evaluation.log_every == 0 or last or done == begin + 1:
        row = averages.read()
        writer.write_scalars(done, row | speed.read(done, compiled.flops))
        bar.set_postfix(loss=f"{row['loss']:.4f}")
      data_state = batches.get_state()
      if not last:
        batch = shard_batch(next(batches), setup.mesh)
      if done % config.checkpoint.every == 0 or last:
        averages.settle()
        checkpoints.save(done, state, data_state)
        writer.flush()
      if done % max(config.evaluation.sample_every, 1) == 0 or last:
        sample(state, done)
        speed.restart(done)
      if late:
        logging.warning("stopped after max_minutes at step %d", done)
        break
  return state


def _plain(params: nnx.State) -> dict:
  return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}


def _sample(
  config: ConfigDict,
  workdir: str,
  setup: Setup,
  writer: hooks.MetricWriter,
  state: TrainState,
  step: int,
):
  if hasattr(setup.task, "sample") and config.evaluation.sample_every > 0:
    model = averaged_model(setup.graphdef, state)
    row = setup.task.sample(model, workdir, step)
    if row:
      writer.write_scalars(step, row)


def export(config: ConfigDict, workdir: str | os.PathLike, setup: Setup, state: TrainState):
  """Finishes the averaged model and writes workdir/weights/EXPORT.safetensors (process 0)."""
  if jax.process_count() > 1:
    state = dataclasses.replace(state, ema=process_allgather(state.ema, tiled=True))
  model = averaged_model(setup.graphdef, state)
  if hasattr(setup.task, "finish"):
    setup.task.finish(model)
  if jax.process_index() == 0:
    path = pathlib.Path(workdir) / "weights" / f"{config.export}.safetensors"
    shipped.save_module(path, model, config=setup.task.config_dict())
