"""The training state: everything that a step reads and writes, as one pytree."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct


@struct.dataclass
class TrainState:
  """Step, fp32 parameters, their moving average, optimiser state, variables of other kinds."""

  step: jax.Array
  params: nnx.State
  ema: nnx.State
  opt_state: optax.OptState
  rest: nnx.State


def create_state(model: nnx.Module, optimiser: optax.GradientTransformation) -> TrainState:
  """The state at step 0; the average starts as a copy of the parameters."""
  _, params, rest = nnx.split(model, nnx.Param, ...)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=jax.tree.map(jnp.copy, params),
    opt_state=optimiser.init(params),
    rest=rest,
  )


def averaged_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
  """The model with the averaged parameters, which is what is sampled and exported."""
  return nnx.merge(graphdef, state.ema, state.rest)


def update_average(ema: nnx.State, params: nnx.State, decay: float, step: jax.Array) -> nnx.State:
  """One step of the moving average; the decay warms up as (1 + step) / (10 + step)."""
  rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda old, new: old + (1.0 - rate) * (new - old), ema, params)
