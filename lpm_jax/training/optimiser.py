"""AdamW with warm-up, cosine decay, decay of matrices only, and learning-rate factors by stage."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up to `config.learning_rate`, then a cosine to `config.final_learning_rate`."""
  warmup = min(config.warmup, max(steps - 1, 0))
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup else config.learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=warmup,
    decay_steps=max(steps, warmup + 1),
    end_value=config.final_learning_rate,
  )


def is_matrix(variable: nnx.Variable) -> bool:
  """Whether weight decay applies: two axes or more, stacked layers not counted."""
  names = variable.get_metadata().get("out_sharding") or ()
  return variable.ndim - ("layers" in names) >= 2


def decay_mask(params: nnx.State) -> nnx.State:
  """True for every parameter that decays."""
  return jax.tree.map(
    lambda v: jax.tree.map(lambda _: is_matrix(v), v),
    params,
    is_leaf=lambda v: isinstance(v, nnx.Variable),
  )


StageFactors = Sequence[tuple[int, Sequence[tuple[str, float]]]]


def scale_by_stage(stages: StageFactors) -> optax.GradientTransformation:
  """Multiplies updates by the factor of the first regex that is found in the parameter's path.

  Args:
    stages: (steps, [(path regex, factor), ...]) in order; the last one lasts.
  """
  ends = jnp.cumsum(jnp.array([steps for steps, _ in stages[:-1]], jnp.int32))

  def factors(path: tuple) -> list[float]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return [
      next((float(f) for regex, f in rules if re.search(regex, name)), 1.0) for _, rules in stages
    ]

  def update(updates: optax.Updates, count: jax.Array, params: optax.Params | None = None):
    del params
    stage = (count >= ends).sum()
    scaled = jax.tree_util.tree_map_with_path(
      lambda path, u: u * jnp.array(factors(path), u.dtype)[stage], updates
    )
    return scaled, count + 1

  return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def make_optimiser(
  config: ConfigDict, steps: int, stages: StageFactors = ()
) -> optax.GradientTransformation:
  """Clip by global norm -> AdamW. `config` is the `optimiser` section of a training config.

  Decay and stage factors come after Adam, so a factor of 0 freezes a parameter.
  """
  parts = [
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(learning_rate(config, steps)),
  ]
  if any(rules for _, rules in stages):
    parts.append(scale_by_stage(stages))
  return optax.chain(*parts)


def optimiser_of(task: object, config: ConfigDict) -> optax.GradientTransformation:
  """The task's own optimiser, or the one of `config.optimiser`."""
  if hasattr(task, "optimiser"):
    return task.optimiser()
  stages = task.learning_rates() if hasattr(task, "learning_rates") else ()
  return make_optimiser(config.optimiser, config.steps, stages)
