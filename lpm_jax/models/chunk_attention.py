"""Attention of a chunk over its caches: a TPU kernel that joins, masks and copies nothing.

Keys and values are read where they lie, in caches of all blocks. A grid (a latent frame or a
reference picture) is seen or not, so the kernel skips whole grids in place of masking tokens.

Scores are bounded by the largest norms of query and key (Cauchy-Schwarz), which RMS norms keep
small: as long as the bound is under LIMIT, 2 ** score needs no running maximum to stay finite, and
the kernel does none of its work. A head beyond the bound takes the usual online softmax.

Scores are made with keys along sublanes: sums over keys are then plain additions, and the product
with the values fills a 256 x 256 matrix unit though a head has 128 channels. Weights of one part of
the queries are computed while those of the part before are multiplied with the values.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from lpm_jax.parallel import layout
from lpm_jax.parallel.sharding import BATCH_AXES

LIMIT = 80.0  # bits: 2 ** LIMIT times 2 ** 17 keys, times values, is far from fp32's 2 ** 127
PART = 256  # queries whose weights are made at once: columns of a matrix unit
_UNROLLED = 4  # parts in one turn of the loop
_MOST_PARTS = 37  # of a block of queries: 9,472, so that all of a chunk of 480p are one block
_VMEM = 64 * 2**20
_LOG2_E = math.log2(math.e)


@struct.dataclass
class Source:
  """Keys, already turned, and values of G grids of N tokens in all blocks, and which block.

  Attributes:
    key, value: [P, 2, B, K, G, N, d].
    norm: fp32 [B, K], at least the largest norm of a key of this block.
    block: int32 [2], places in the first two axes.
  """

  key: Array
  value: Array
  norm: Array
  block: Array


def chunk_attend(
  query: Array,
  sources: Sequence[Source],
  seen: Array,
  *,
  apart: str = "heads",
  interpret: bool = False,
) -> Array:
  """Softmax attention of queries [B, K, S, d], turned and not scaled, over all sources.

  seen bool [B, total G]: grids that are there, at least one. Runs forward only. Returns
  [B, K, S, d]. `interpret` runs the kernel where there is no TPU. On a mesh (`jax.set_mesh`) each
  device has its own batch and heads; where tokens lie apart over `context`, that axis has heads too
  or, with `apart` = "queries", queries.
  """
  query = (query * (query.shape[-1] ** -0.5 * _LOG2_E)).astype(query.dtype)
  bound = largest_norm(query) * functools.reduce(jnp.maximum, [s.norm for s in sources])
  local = functools.partial(_local, interpret=interpret)
  given = (
    query,
    [s.key for s in sources],
    [s.value for s in sources],
    jnp.stack([s.block for s in sources]),
    seen.astype(jnp.int32),
    bound,
  )
  if jax.sharding.get_abstract_mesh().empty:
    return local(*given)
  names = ("cached", None) if apart == "heads" else ("heads", "queries")
  heads, queries = (name and layout.axes(name) for name in names)
  rows = PartitionSpec(BATCH_AXES, heads, queries)
  cached = PartitionSpec(None, None, BATCH_AXES, heads)
  of_heads = PartitionSpec(BATCH_AXES, heads)
  return jax.shard_map(
    local,
    in_specs=(rows, cached, cached, PartitionSpec(), PartitionSpec(BATCH_AXES), of_heads),
    out_specs=rows,
    check_vma=False,
  )(*given)


def source_of(key: Array, value: Array) -> Source:
  """Keys and values of one block alone, [B, K, G, N, d]."""
  norm = largest_norm(key.reshape(*key.shape[:2], -1, key.shape[-1]))
  return Source(key[None, None], value[None, None], norm, jnp.zeros(2, jnp.int32))


def largest_norm(x: Array) -> Array:
  """Largest Euclidean norm of each head: [..., B, K, tokens, d] -> fp32 [..., B, K]."""
  return jnp.sqrt(jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1), axis=-1))


def kernel_flops(queries: int, keys: int, heads: int, head: int) -> int:
  """Floating-point operations of one call for one example, padding included."""
  parts, blocks = _query_parts(queries)
  return 4 * blocks * parts * PART * keys * heads * head


def _cost(query: Array, keys: int) -> pl.CostEstimate:
  batch, heads, queries, head = query.shape
  scores = batch * heads * queries * keys
  moved = 2 * batch * heads * head * (queries + keys)
  return pl.CostEstimate(
    flops=batch * kernel_flops(queries, keys, heads, head),
    transcendentals=scores,
    bytes_accessed=moved * query.dtype.itemsize,
  )


def _query_parts(queries: int) -> tuple[int, int]:
  """Parts of a block, and blocks."""
  parts = -(-queries // PART)
  blocks = -(-parts // _MOST_PARTS)
  return -(-parts // blocks), blocks


def _local(
  query: Array,
  keys: Sequence[Array],
  values: Sequence[Array],
  places: Array,
  seen: Array,
  bound: Array,
  *,
  interpret: bool,
) -> Array:
  batch, heads, length, head = query.shape
  tokens = keys[0].shape[-2]
  if tokens % 8:
    raise ValueError(f"chunk attention: found {tokens} tokens a grid, expected a multiple of 8")
  parts, blocks = _query_parts(length)
  rows, grids = parts * PART, [key.shape[4] for key in keys]
  query = jnp.pad(query, ((0, 0), (0, 0), (0, rows * blocks - length), (0, 0)))
  of_queries = pl.BlockSpec((None, None, rows, head), lambda b, h, i, j, *_: (b, h, i, 0))
  anywhere = [pl.BlockSpec(memory_space=pl.ANY)] * (2 * len(keys))
  weights = pltpu.VMEM((tokens, PART), query.dtype)
  out = pl.pallas_call(
    functools.partial(_kernel, grids=grids, parts=parts),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(batch, heads, blocks, sum(grids)),
      in_specs=[of_queries, *anywhere],
      out_specs=of_queries,
      scratch_shapes=[
        pltpu.VMEM((2, 2, tokens, head), query.dtype),
        pltpu.SemaphoreType.DMA((2, 2)),
        pltpu.VMEM((head, tokens), query.dtype),
        [weights, weights],
        pltpu.VMEM((head, rows), jnp.float32),
        pltpu.VMEM((8, rows), jnp.float32),
        pltpu.VMEM((8, rows), jnp.float32),
      ],
    ),
    out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=_VMEM,
    ),
    cost_estimate=_cost(query, sum(grids) * tokens),  # what the compiler may hide behind it
    interpret=interpret,
    name="chunk_attention",
  )(places, seen, bound, query, *keys, *values)
  return out[:, :, :length]


def _kernel(places, seen, bound, query, *refs, grids: Sequence[int], parts: int):
  """One grid of keys and one block of queries; grids come one after the other."""
  count = len(grids)
  cached = list(zip(refs[:count], refs[count : 2 * count], strict=True))
  out, loaded, arrived, turned_value, weights, total, weight_sum, highest = refs[2 * count :]
  b, h, j = pl.program_id(0), pl.program_id(1), pl.program_id(3)
  slot, last = j % 2, pl.num_programs(3) - 1

  def load(grid, into):
    start = 0
    for source, (arrays, size) in enumerate(zip(cached, grids, strict=True)):

      @pl.when((grid >= start) & (grid < start + size))
      def _(source=source, arrays=arrays, start=start):
        for which, array in enumerate(arrays):
          at = array.at[places[source, 0], places[source, 1], b, h, grid - start]
          pltpu.make_async_copy(at, loaded.at[into, which], arrived.at[into, which]).start()

      start += size

  @pl.when(j == 0)
  def _begin():
    load(0, 0)
    total[...] = jnp.zeros_like(total)
    weight_sum[...] = jnp.zeros_like(weight_sum)
    highest[...] = jnp.full_like(highest, jnp.finfo(jnp.float32).min)

  @pl.when(j < last)
  def _prefetch():
    load(j + 1, 1 - slot)

  for which in range(2):
    here = loaded.at[slot, which]
    pltpu.make_async_copy(here, here, arrived.at[slot, which]).wait()

  def columns(part):
    return pl.ds(part * PART if isinstance(part, int) else pl.multiple_of(part * PART, PART), PART)

  def scores(part):
    of_part = query[columns(part), :]
    return _dot(loaded[slot, 0], of_part, ((1,), (1,)))

  def weigh(part, into):
    made = jnp.exp2(scores(part))
    weight_sum[:, columns(part)] += _sublanes(made)
    weights[into][...] = made.astype(weights[into].dtype)

  def add(part, given):
    total[:, columns(part)] += _dot(turned_value[...], weights[given][...], ((1,), (0,)))

  def bounded():
    weigh(0, 0)

    def turn(step, _):
      for part in range(_UNROLLED):
        weigh(step * _UNROLLED + part + 1, (part + 1) % 2)
        add(step * _UNROLLED + part, part % 2)

    turns = (parts - 1) // _UNROLLED
    jax.lax.fori_loop(0, turns, turn, None)
    for part in range(turns * _UNROLLED, parts):
      if part + 1 < parts:
        weigh(part + 1, (part + 1) % 2)
      add(part, part % 2)

  def unbounded(part, _):
    at, made = columns(part), scores(part)
    before = highest[:1, at]
    now = jnp.maximum(before, made.max(axis=0, keepdims=True))
    made, shrink = jnp.exp2(made - now), jnp.exp2(before - now)
    weight_sum[:, at] = weight_sum[:, at] * shrink + _sublanes(made)
    added = _dot(turned_value[...], made.astype(weights[0].dtype), ((1,), (0,)))
    total[:, at] = total[:, at] * shrink + added
    highest[:, at] = jnp.broadcast_to(now, (8, PART))

  there, small = seen[b, j] > 0, bound[b, h] <= LIMIT

  @pl.when(there)
  def _turn_values():
    turned_value[...] = loaded[slot, 1].T

  pl.when(there & small)(bounded)

  @pl.when(there & ~small)
  def _():
    jax.lax.fori_loop(0, parts, unbounded, None)

  @pl.when(j == last)
  def _end():
    sums = jnp.sum(weight_sum[...], axis=0, keepdims=True)
    out[...] = (total[...] / sums).T.astype(out.dtype)


def _dot(x: Array, y: Array, over: tuple[tuple[int], tuple[int]]) -> Array:
  return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.float32)


def _sublanes(x: Array) -> Array:
  """Sums of every eighth row: [8 n, columns] -> [8, columns]."""
  return jnp.sum(x.reshape(-1, 8, x.shape[1]), axis=0)
