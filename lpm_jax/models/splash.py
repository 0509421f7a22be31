"""Attention without S x T numbers in memory: JAX's splash kernel, on each device its own heads.

Arrays lie on the mesh in force (`jax.set_mesh`): batch over data and fsdp, queries over context,
heads over tensor. Keys and values are whole along context.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from lpm_jax.parallel.sharding import BATCH_AXES

BLOCK_QUERY, BLOCK_KEY, BLOCK_COMPUTE = 1024, 2048, 1024


def splash_attend(
  query: Array, key: Array, value: Array, seen: Array, *, interpret: bool = False
) -> Array:
  """Softmax attention; the kernel runs forward only.

  Shapes: query [B, S, K, d], scaled; key and value [B, T, K, d]; seen bool [B, T], keys that are
  looked at, at least one. Returns [B, S, K, d]. `interpret` runs the kernel where there is no TPU.

  Source: jax.experimental.pallas.ops.tpu.splash_attention.
  """
  local = functools.partial(_local, interpret=interpret)
  if jax.sharding.get_abstract_mesh().empty:
    return local(query, key, value, seen)
  queries = PartitionSpec(BATCH_AXES, "context", "tensor")
  keys = PartitionSpec(BATCH_AXES, None, "tensor")
  return jax.shard_map(
    local,
    in_specs=(queries, keys, keys, PartitionSpec(BATCH_AXES)),
    out_specs=queries,
    check_vma=False,
  )(query, key, value, seen)


def _local(query: Array, key: Array, value: Array, seen: Array, *, interpret: bool) -> Array:
  length, heads = query.shape[1:3]
  rows = _block(query.shape[1], BLOCK_QUERY, 128)
  compute = _block(key.shape[1], BLOCK_COMPUTE, 128)
  columns = _block(key.shape[1], BLOCK_KEY, compute)
  query, key, value, seen = (
    _padded(x, block)
    for x, block in ((query, rows), (key, columns), (value, columns), (seen, columns))
  )
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([splash.FullMask((query.shape[1], key.shape[1]))] * heads),
    block_sizes=splash.BlockSizes(rows, columns, compute),
    interpret=interpret,
  )
  segments = splash.SegmentIds(jnp.ones(query.shape[:2], jnp.int32), seen.astype(jnp.int32))
  heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  out = jax.vmap(kernel)(*heads_first, segments)
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _block(length: int, largest: int, multiple: int) -> int:
  return min(largest, -(-length // multiple) * multiple)


def _padded(x: Array, block: int) -> Array:
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))
