"""Linear maps of tokens that lie apart over the tensor axis of the mesh in force.

Between layers each device of a tensor group has its own part of every grid's tokens, so that norms,
modulation and residuals are done once. A layer's first map gathers them and leaves its outputs
apart by columns; its last one sums over the group and scatters (sequence parallelism, arXiv
2205.05198). Without a mesh in force (`jax.set_mesh`), or where tokens do not divide, these are
plain linear maps.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from jax.sharding import PartitionSpec

from lpm_jax.models.layers import Linear
from lpm_jax.parallel import layout

AXIS = "tensor"
_TOKENS = PartitionSpec(None, None, AXIS)
_COLUMNS = PartitionSpec(None, None, None, AXIS)


def spread(x: Array) -> Array:
  """Tokens [B, G, N, D], N over the tensor group."""
  return layout.constrain(x, "batch", None, "tokens", None)


def gather_into(x: Array, maps: Sequence[Linear]) -> list[Array]:
  """What each map makes of tokens [B, G, N, D]: [B, G, N, columns], columns over the group."""
  if not _apart(x):
    return [linear(x) for linear in maps]
  kernels = [linear.weights() for linear in maps]

  @functools.partial(
    jax.shard_map,
    in_specs=(_TOKENS, PartitionSpec(None, AXIS)),
    out_specs=_COLUMNS,
    axis_names={AXIS},
  )
  def products(x: Array, kernels: list[Array]) -> list[Array]:
    parts = jax.lax.all_gather(x, AXIS)  # devices first: in place, the small results are moved
    made = rearrange(parts @ _joined(kernels, 1), "t b g n d -> b g (t n) d")
    return jnp.split(made, np.cumsum([k.shape[1] for k in kernels])[:-1], axis=-1)

  made = products(x.astype(maps[0].dtype), kernels)
  return [_biased(y, linear) for y, linear in zip(made, maps, strict=True)]


def scatter_from(xs: Sequence[Array], maps: Sequence[Linear]) -> Array:
  """The sum of maps, each of its own [B, G, N, columns]: tokens [B, G, N, D], N over the group."""
  if not _apart(xs[0]):
    return functools.reduce(jnp.add, [linear(x) for x, linear in zip(xs, maps, strict=True)])
  kernels = [linear.weights() for linear in maps]

  @functools.partial(
    jax.shard_map,
    in_specs=(_COLUMNS, PartitionSpec(AXIS)),
    out_specs=_TOKENS,
    axis_names={AXIS},
  )
  def total(xs: list[Array], kernels: list[Array]) -> Array:
    devices = jax.lax.axis_size(AXIS)
    xs = [rearrange(x, "b g (t n) d -> t b g n d", t=devices) for x in xs]
    return jax.lax.psum_scatter(_joined(xs, -1) @ _joined(kernels, 0), AXIS)

  made = total([x.astype(m.dtype) for x, m in zip(xs, maps, strict=True)], kernels)
  return functools.reduce(_biased, maps, made)


def _joined(parts: Sequence[Array], axis: int) -> Array:
  """One product in place of several: on a v6e, two of 640 channels take twice as long as one."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _apart(x: Array) -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.shape[AXIS] > 1 and x.shape[2] % mesh.shape[AXIS] == 0


def _biased(y: Array, linear: Linear) -> Array:
  return y if linear.bias is None else y + linear.bias[...].astype(linear.dtype)
