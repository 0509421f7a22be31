"""One training step: gradients (accumulated), clipping, AdamW, moving average."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

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
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """The pure function (state, batch) -> (state, metrics); jit it with the state donated.

  Args:
    seed: every random draw is fold_in(seed, step, stream, micro-batch).
    accumulate: the batch is cut into this many parts, one after the other; gradients are averaged.
  """

  def loss_fn(params: nnx.State, rest: nnx.State, batch: dict, key: jax.Array, step: jax.Array):
    model = nnx.merge(graphdef, params, rest, copy=True)  # variables belong to this trace
    loss, metrics = task.loss(model, batch, key, step)
    _, _, rest = nnx.split(model, nnx.Param, ...)
    return loss, ({"loss": loss, **metrics}, rest)

  gradient = jax.grad(loss_fn, has_aux=True)

  def gradients(state: TrainState, batch: dict, key: jax.Array):
    if accumulate == 1:
      key = jax.random.fold_in(key, 0)
      grads, (metrics, rest) = gradient(state.params, state.rest, batch, key, state.step)
      return grads, metrics, rest

    def micro(carry: tuple, part: tuple):
      total, rest = carry
      index, rows = part
      grads, (metrics, rest) = gradient(
        state.params, rest, rows, jax.random.fold_in(key, index), state.step
      )
      return (jax.tree.map(jnp.add, total, grads), rest), metrics

    # Strided parts: each keeps rows of every data shard, so cutting moves nothing between devices.
    parts = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (total, rest), metrics = jax.lax.scan(
      micro, (zeros, state.rest), (jnp.arange(accumulate), parts)
    )
    average = jax.tree.map(lambda g: g / accumulate, total)
    return average, jax.tree.map(lambda m: m.mean(0), metrics), rest

  def step_fn(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), LOSS_STREAM)
    grads, metrics, rest = gradients(state, batch, key)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_average(state.ema, params, ema_decay, state.step)
    metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, ema, opt_state, rest), metrics

  return step_fn


class CompiledStep:
  """A step function with its state donated, compiled once per batch shape (stages may differ).

  Attributes:
    flops: of one step over all devices, for the shape prepared last.
  """

  def __init__(self, step_fn: Callable[[TrainState, dict], tuple[TrainState, dict]]):
    self._jitted = jax.jit(step_fn, donate_argnums=0)
    self._ready: dict[tuple, tuple[Callable, int]] = {}
    self.flops = 0

  def prepare(self, state: TrainState, batch: dict) -> bool:
    """Selects the program for this batch; True when it had to be compiled."""
    shape = tuple((name, rows.shape) for name, rows in sorted(batch.items()))
    is_new = shape not in self._ready
    if is_new:
      traced = self._jitted.trace(state, batch)
      self._ready[shape] = traced.lower().compile(), jaxpr_flops(traced.jaxpr.jaxpr)
    self._run, self.flops = self._ready[shape]
    return is_new

  def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """Runs the program prepared last."""
    return self._run(state, batch)
