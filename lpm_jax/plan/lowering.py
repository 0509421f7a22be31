"""The real train step, lowered for absent devices: shapes alone, nothing is computed."""

import dataclasses
import math

import jax
import optax
from flax import nnx
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import batch_sharding, tree_shardings
from lpm_jax.plan import chips
from lpm_jax.training.optimiser import optimiser_of
from lpm_jax.training.state import TrainState, create_state
from lpm_jax.training.step import make_step, trace_step
from lpm_jax.training.task import Task, make_task


@dataclasses.dataclass(frozen=True)
class AbstractStep:
  """A train step before it is compiled, over all devices.

  Attributes:
    task: what is trained.
    mesh: of the devices.
    state, batch: arrays as shapes with shardings.
    traced: the step; its state is donated.
  """

  task: Task
  mesh: Mesh
  state: TrainState
  batch: dict[str, Shape]
  traced: jax.stages.Traced


def abstract_state(config: ConfigDict, devices: list | None = None) -> tuple[Mesh, TrainState]:
  """Mesh of `devices` (by default those of `config.topology`), and the state lying on it."""
  return _described(config, devices)[2:]


def trace_train_step(config: ConfigDict, devices: list | None = None) -> AbstractStep:
  """The step that `lpm train` would run with this config on `devices`."""
  task, optimiser, mesh, state = _described(config, devices)
  lies = batch_sharding(mesh)
  batch = {
    name: Shape(rows.shape, rows.dtype, sharding=lies)
    for name, rows in task.abstract_batch(config.batch_size).items()
  }
  step_fn = make_step(
    task,
    nnx.graphdef(nnx.eval_shape(lambda: task.build(nnx.Rngs(config.seed)))),
    optimiser,
    seed=config.seed,
    ema_decay=config.optimiser.ema,
    accumulate=config.get("accumulate", 1),
    rules=config.sharding.rules,
  )
  return AbstractStep(task, mesh, state, batch, trace_step(step_fn, state, batch, mesh))


def shard_bytes(tree, *, on_host: bool = False) -> int:
  """Bytes of arrays on one device, or of those that the host keeps for it."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if (leaf.sharding.memory_kind == "pinned_host") == on_host:
      total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return total


def _described(
  config: ConfigDict, devices: list | None
) -> tuple[Task, optax.GradientTransformation, Mesh, TrainState]:
  task = make_task(config)
  mesh = make_mesh(
    config.sharding.mesh,
    devices or chips.devices_of(config.topology),
    slices=config.sharding.get("slices"),
  )
  optimiser = optimiser_of(task, config)
  state = jax.eval_shape(lambda: create_state(task.build(nnx.Rngs(config.seed)), optimiser))
  shardings = tree_shardings(state, mesh, config.sharding.rules)
  placed = jax.tree.map(lambda x, s: Shape(x.shape, x.dtype, sharding=s), state, shardings)
  return task, optimiser, mesh, placed
