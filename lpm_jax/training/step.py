"""One training step: gradients (accumulated), clipping, AdamW, moving average."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpm_jax.parallel import layout
from lpm_jax.parallel.sharding import Rules
from lpm_jax.training.hooks import jaxpr_flops
from lpm_jax.training.state import TrainState, update_average
from lpm_jax.training.task import Task

LOSS_STREAM = 1  # folded into the key, so that other uses of a step's randomness stay independent


def make_step(
  task: Task,
  graphdef: nnx.GraphDef,
  optimiser: optax.GradientTransformation,
  *,
  seed: int,
  ema_decay: float,
  accumulate: int = 1,
  rules: Rules | None = None,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """The pure function (state, batch) -> (state, metrics); jit it with the state donated.

  Args:
    seed: every random draw is fold_in(seed, step, stream), and micro-batch where the loss draws.
    accumulate: the batch is cut into this many parts, one after the other; gradients are averaged.
      Each part is whole for every group of devices along the data axis, whose gradients meet once a
      step; those of a group meet once a part, for whole gradients of a large model fit no device.
    rules: mesh axes of parameters (`sharding.rules`), for a mesh in force while tracing.
  """

  def loss_fn(params: nnx.State, rest: nnx.State, batch: dict, key: jax.Array, step: jax.Array):
    model = nnx.merge(graphdef, params, rest, copy=True)  # variables belong to this trace
    loss, metrics = task.loss(model, batch, key, step)
    _, _, rest = nnx.split(model, nnx.Param, ...)
    return loss, ({"loss": loss, **metrics}, rest)

  gradient = jax.grad(loss_fn, has_aux=True)

  def gradients(state: TrainState, batch: dict, key: jax.Array):
    if hasattr(task, "draw"):
      batch = {**batch, **task.draw(batch, key)}
    if accumulate == 1:
      key = jax.random.fold_in(key, 0)
      grads, (metrics, rest) = gradient(state.params, state.rest, batch, key, state.step)
      return grads, metrics, rest
    groups = 1 if jax.tree.leaves(state.rest) else layout.axis_size("data")

    def of_group(rest: nnx.State, rows: dict, key: jax.Array):
      return gradient(state.params, rest, rows, key, state.step)

    def micro(carry: tuple, part: tuple):
      total, rest = carry
      index, rows = part
      key_of_part = jax.random.fold_in(key, index)
      if groups == 1:
        grads, (metrics, rest) = of_group(rest, rows, key_of_part)
      else:
        with layout.in_force(stored=rules, batch="fsdp"):
          each = jax.vmap(of_group, in_axes=(None, 0, None), spmd_axis_name="data")
          grads, (metrics, _) = each(rest, rows, key_of_part)
        metrics = jax.tree.map(jnp.mean, metrics)
      return (jax.tree.map(jnp.add, total, grads), rest), metrics

    parts = jax.tree.map(lambda x: _cut(x, accumulate, groups), batch)
    zeros = jax.tree.map(lambda p: _zeros(p, groups), state.params)
    (total, rest), metrics = jax.lax.scan(
      micro, (zeros, state.rest), (jnp.arange(accumulate), parts)
    )
    average = jax.tree.map(lambda g: g / accumulate, total)
    if groups > 1:
      average = jax.tree.map(lambda g: g.mean(0), average)
    return average, jax.tree.map(lambda m: m.mean(0), metrics), rest

  def step_fn(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), LOSS_STREAM)
    with layout.in_force(stored=rules):
      grads, metrics, rest = gradients(state, batch, key)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_average(state.ema, params, ema_decay, state.step)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, ema, opt_state, rest), metrics

  return step_fn


def _cut(x: jax.Array, parts: int, groups: int) -> jax.Array:
  """[B, ...] -> [parts, groups, b, ...], or [parts, b, ...] for one group.

  Strided: each part keeps rows of every device, so cutting moves nothing between devices.
  """
  if x.shape[0] % (parts * groups):
    raise ValueError(
      f"batch_size: found {x.shape[0]}, expected a multiple of accumulate {parts} x data {groups}"
    )
  x = x.reshape(groups, -1, parts, *x.shape[1:])
  x = jnp.moveaxis(x, 2, 0)
  return x if groups > 1 else x[:, 0]


def _zeros(parameter: jax.Array, groups: int) -> jax.Array:
  shape = (groups,) * (groups > 1) + parameter.shape
  return jnp.zeros(shape, parameter.dtype)


class CompiledStep:
  """A step function with its state donated, compiled once per batch shape (stages may differ).

  Args:
    step_fn: see `make_step`.
    mesh: in force while the step is traced; None: none.
    options: of the compiler.

  Attributes:
    flops: of one step over all devices, for the shape prepared last.
  """

  def __init__(
    self,
    step_fn: Callable[[TrainState, dict], tuple[TrainState, dict]],
    mesh: Mesh | None = None,
    options: dict[str, str] | None = None,
  ):
    self._step_fn, self._mesh, self._options = step_fn, mesh, options
    self._ready: dict[tuple, tuple[Callable, int]] = {}
    self.flops = 0

  def prepare(self, state: TrainState, batch: dict) -> bool:
    """Selects the program for this batch; True when it had to be compiled."""
    shape = tuple((name, rows.shape) for name, rows in sorted(batch.items()))
    is_new = shape not in self._ready
    if is_new:
      traced = trace_step(self._step_fn, state, batch, self._mesh)
      compiled = traced.lower().compile(compiler_options=self._options or None)
      self._ready[shape] = compiled, jaxpr_flops(traced.jaxpr.jaxpr)
    self._run, self.flops = self._ready[shape]
    return is_new

  def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """Runs the program prepared last."""
    return self._run(state, batch)


def trace_step(
  step_fn: Callable[[TrainState, dict], tuple[TrainState, dict]],
  state: TrainState,
  batch: dict,
  mesh: Mesh | None,
) -> jax.stages.Traced:
  """The step on a mesh; its state is donated and comes out where it went in.

  `state` and `batch` are arrays, or shapes with shardings.
  """
  if mesh is None:
    return jax.jit(step_fn, donate_argnums=0).trace(state, batch)
  there = jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, PartitionSpec())
  with jax.set_mesh(mesh):
    return jax.jit(step_fn, donate_argnums=0, out_shardings=there).trace(state, batch)
