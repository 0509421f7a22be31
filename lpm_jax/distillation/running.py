"""Streams that go on from one training step to the next."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array

from lpm_jax.models.conditions import Conditions
from lpm_jax.streaming.cache import StreamCache


@struct.dataclass
class Window:
  """Latents that scores look at.

  Attributes:
    latents: [B, F, H, W, C].
    conditions: of all of them.
    known: int32 [], how many at the beginning are given clean.
  """

  latents: Array
  conditions: Conditions
  known: Array

  def weight(self) -> Array:
    """1.0 for latents that were made, 0.0 for those that were given: [B, F]."""
    made = jnp.arange(self.latents.shape[1]) >= self.known
    return jnp.broadcast_to(made, self.latents.shape[:2]).astype(jnp.float32)


class Carried(nnx.Variable):
  """State of a stream."""


class Running(nnx.Module):
  """The caches of a batch of streams, their last latent, and their references.

  Args:
    begin: (model, batch) -> (cache, window of the picture alone), from which shapes are taken.
    model: the model of the streams.
    batch: shapes of a batch.
  """

  def __init__(self, begin: Callable[..., tuple], model: nnx.Module, batch: dict):
    graphdef, state = nnx.split(model)
    shapes = jax.eval_shape(lambda s, b: begin(nnx.merge(graphdef, s), b), state, batch)
    cache, window = shapes
    leaves, self.structure = jax.tree.flatten(shapes)
    names = jax.tree.leaves(cache.axes(), is_leaf=lambda x: isinstance(x, tuple))
    names += [("batch", *(None,) * x.ndim)[: x.ndim] for x in jax.tree.leaves(window)]
    self.arrays = nnx.List(
      [
        Carried(jnp.zeros(x.shape, x.dtype), out_sharding=n, eager_sharding=False)
        for x, n in zip(leaves, names, strict=True)
      ]
    )

  def read(self) -> tuple[StreamCache, Window]:
    """What the step before left."""
    return jax.tree.unflatten(self.structure, [x[...] for x in self.arrays])

  def write(self, cache: StreamCache, last: Array, conditions: Conditions):
    """Keeps caches, last latents [B, 1, H, W, C] and the conditions with the references."""
    left = cache, Window(last, conditions, jnp.int32(1))
    for variable, x in zip(self.arrays, jax.tree.leaves(left), strict=True):
      variable[...] = jax.lax.stop_gradient(x)
