"""Attention without S x T numbers in memory: JAX's splash kernel, on each device its own heads.

Arrays lie on the mesh in force (`jax.set_mesh`): batch over data and fsdp, queries over context,
heads over tensor. Keys and values are whole along context.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from lpm_jax.parallel.sharding import BATCH_AXES

BLOCK_QUERY, BLOCK_KEY, BLOCK_COMPUTE = 2048, 3072, 1024


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


def kernel_flops(queries: int, keys: int, heads: int, head: int) -> int:
  """Floating-point operations of one call for one example, padding included."""
  rows, columns = _blocks(queries, BLOCK_QUERY, 16), _key_blocks(keys)[1:]
  return 4 * math.prod(rows) * math.prod(columns) * heads * head


def _local(query: Array, key: Array, value: Array, seen: Array, *, interpret: bool) -> Array:
  length, heads = query.shape[1:3]
  rows, row_blocks = _blocks(length, BLOCK_QUERY, 16)
  compute, columns, column_blocks = _key_blocks(key.shape[1])
  query = _padded(query, rows * row_blocks)
  key, value, seen = (_padded(x, columns * column_blocks) for x in (key, value, seen))
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([splash.FullMask((query.shape[1], key.shape[1]))] * heads),
    block_sizes=splash.BlockSizes(rows, columns, compute),
    interpret=interpret,
  )
  segments = splash.SegmentIds(jnp.ones(query.shape[:2], jnp.int32), seen.astype(jnp.int32))
  heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  out = jax.vmap(kernel)(*heads_first, segments)
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _blocks(length: int, largest: int, multiple: int) -> tuple[int, int]:
  """Size and number of blocks, as even as multiples allow: 9,360 rows are 5 blocks of 1,872."""
  count = -(-length // largest)
  return -(-length // (count * multiple)) * multiple, count


def _key_blocks(length: int) -> tuple[int, int, int]:
  """Keys of one product, keys of a block, number of blocks."""
  compute = _blocks(length, BLOCK_COMPUTE, 128)[0]
  return compute, *_blocks(length, BLOCK_KEY, compute)


def _padded(x: Array, length: int) -> Array:
  return jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
