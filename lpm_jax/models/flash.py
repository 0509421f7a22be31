"""Attention to parts of the keys, one after the other, that never holds all S x T numbers.

Parts are merged by their log-sum-exp; the backward pass needs the merged output and log-sum-exp
only, which may carry the name `RESIDUALS` for remat policies. With a ring, the keys of each device
of a mesh axis visit every other one (Ring Attention, arXiv 2310.01889).

Kernels: JAX's splash attention on TPUs, forward and fused backward, interpreted where there is no
TPU; or dense products.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

RESIDUALS = "attention"
LANES = 128
HIDDEN = float(kernels.DEFAULT_MASK_VALUE)
# (query index, key index) -> bool, elementwise; may have `block(slice, slice)` -> bool [S, T].
Sees = Callable[[Array, Array], Array]
Blocks = tuple[int, int, int]  # rows, keys, and keys of one product within them

# Largest blocks of the kernels, forward and backward, by chip. A kernel is unrolled over its block:
# rows x keys is what compiling costs. Read off the compiler's schedule
# (benchmarks/flash_kernel.py): forward, narrow products spill the fewest registers; backward, each
# block of keys leaves a partial gradient of all queries to be written and read again, so that on
# v5p, where a clip has a chip for itself, blocks are wide and low; on v6e that costs a sixth of the
# kernel's speed, and a clip is shared by four chips.
BLOCKS: dict[str, tuple[Blocks, Blocks]] = {
  "v5p": ((1024, 2048, 256), (256, 8448, 640)),
  "v6e": ((1024, 2048, 256), (512, 5120, 512)),
  "tpu7x": ((1024, 2048, 256), (256, 8448, 640)),
}


@dataclasses.dataclass(frozen=True)
class How:
  """What does not change while a program runs.

  Attributes:
    kernel: "splash" or "dense".
    chip: whose BLOCKS the kernel takes.
    sees: of each part, which query sees which key of it (a hashable function); None: all.
    ring: mesh axis around which the keys travel; None: they stay.
    turns: devices of the ring.
    residuals: whether output and log-sum-exp carry the name `RESIDUALS`.
  """

  kernel: str
  chip: str
  sees: tuple[Sees | None, ...]
  ring: str | None = None
  turns: int = 1
  residuals: bool = True


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_parts(
  how: How,
  query: Array,
  keys: tuple[Array, ...],
  values: tuple[Array, ...],
  seen: tuple[Array | None, ...],
) -> Array:
  """Softmax attention over the keys of all parts.

  Shapes: query [B, K, S, d], scaled; of each part key and value [B, K, T, d], and seen bool [B, T],
  the keys that are there (None: all). Every query must see a key. Returns [B, K, S, d].
  """
  return _forward(how, query, keys, values, seen)[0]


def _forward(how: How, query: Array, keys: tuple, values: tuple, seen: tuple):
  kernel = _KERNELS[how.kernel](how.chip)
  out, lse = jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:3], -jnp.inf)
  travelling = keys, values, seen
  for turn in range(how.turns):
    for sees, key, value, there in zip(how.sees, *travelling, strict=True):
      part, of_part = kernel.forward(query, key, value, there, sees)
      total = jnp.logaddexp(lse, of_part)
      out = out * jnp.exp(lse - total)[..., None] + part * jnp.exp(of_part - total)[..., None]
      lse = total
    if turn + 1 < how.turns:
      travelling = _passed_on(how, travelling)
  out = out.astype(query.dtype)
  if how.residuals:
    out, lse = (checkpoint_name(x, RESIDUALS) for x in (out, lse))
  return out, (query, keys, values, seen, out, lse)


def _backward(how: How, kept: tuple, of_out: Array):
  query, keys, values, seen, out, lse = kept
  kernel = _KERNELS[how.kernel](how.chip)
  inner = jnp.einsum("bksd,bksd->bks", out, of_out, preferred_element_type=jnp.float32)
  of_query = jnp.zeros(query.shape, jnp.float32)
  of_keys, of_values = ([jnp.zeros(x.shape, jnp.float32) for x in xs] for xs in (keys, values))
  travelling = keys, values, seen
  for turn in range(how.turns):
    for i, (sees, key, value, there) in enumerate(zip(how.sees, *travelling, strict=True)):
      made = kernel.backward(query, key, value, there, sees, lse, of_out, inner)
      of_query, of_keys[i], of_values[i] = (
        total + x for total, x in zip((of_query, of_keys[i], of_values[i]), made, strict=True)
      )
    if turn + 1 < how.turns:
      travelling = _passed_on(how, travelling)
    if how.ring:  # gradients travel with their keys, and once more to be home
      of_keys, of_values = _passed_on(how, (of_keys, of_values))
  cast = lambda made, like: tuple(m.astype(x.dtype) for m, x in zip(made, like, strict=True))  # noqa: E731
  of_query = of_query.astype(query.dtype)
  return of_query, cast(of_keys, keys), cast(of_values, values), (None,) * len(seen)


attend_parts.defvjp(_forward, _backward)


def _passed_on(how: How, tree: tuple) -> tuple:
  """Every device's arrays to the next one of the ring."""
  ring = [(i, (i + 1) % how.turns) for i in range(how.turns)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, how.ring, ring), tree)


class Dense:
  """Products of all queries and keys, in fp32 where it counts."""

  def __init__(self, chip: str):
    del chip

  def forward(self, query, key, value, seen, sees) -> tuple[Array, Array]:
    """Output fp32 [B, K, S, d] and log-sum-exp [B, K, S] of one part."""
    logits = Dense._logits(query, key, seen, sees)
    lse = jax.nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - lse[..., None]).astype(value.dtype)
    return jnp.einsum("bkst,bktd->bksd", weights, value, preferred_element_type=jnp.float32), lse

  def backward(
    self, query, key, value, seen, sees, lse, of_out, inner
  ) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value through one part; `lse` is that of all parts."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights = jnp.exp(Dense._logits(query, key, seen, sees) - lse[..., None])
    of_weights = product("bksd,bktd->bkst", of_out, value)
    of_logits = (weights * (of_weights - inner[..., None])).astype(query.dtype)
    return (
      product("bkst,bktd->bksd", of_logits, key),
      product("bkst,bksd->bktd", of_logits, query),
      product("bkst,bksd->bktd", weights.astype(of_out.dtype), of_out),
    )

  @staticmethod
  def _logits(query, key, seen, sees) -> Array:
    logits = jnp.einsum("bksd,bktd->bkst", query, key, preferred_element_type=jnp.float32)
    if sees is not None:
      shown = sees(jnp.arange(query.shape[2])[:, None], jnp.arange(key.shape[2])[None])
      logits = jnp.where(shown, logits, HIDDEN)
    return logits if seen is None else jnp.where(seen[:, None, None], logits, HIDDEN)


class Splash:
  """JAX's kernels; what Dense computes."""

  def __init__(self, chip: str):
    self._forward_blocks, self._backward_blocks = BLOCKS[chip]

  def forward(self, query, key, value, seen, sees) -> tuple[Array, Array]:
    """See Dense."""
    length = query.shape[2]
    query, (key, value), segments = self._in_lanes(query, (key, value), seen)
    run = _on_backend(_splash_forward, self._forward_blocks, sees, segments)
    out, lse = run(query, key, value)
    return out[:, :, :length], lse[:, :, :length]

  def backward(self, query, key, value, seen, sees, lse, of_out, inner):
    """See Dense. One block of keys after the other, unless a mask needs their places."""
    rows, columns = query.shape[2], key.shape[2]
    query, of_keys, segments = self._in_lanes(query, (key, value), seen)
    of_out, lse, inner = (_padded(x, query.shape[2]) for x in (of_out, lse, inner))

    def run(key: Array, value: Array, segments: Array | None) -> tuple[Array, Array, Array]:
      kernel = _on_backend(_splash_backward, self._backward_blocks, sees, segments)
      return kernel(query, key, value, lse, of_out, inner)

    block = _fitted(query[0], of_keys[0][0], self._backward_blocks)[1]
    if sees is not None or block == of_keys[0].shape[2]:
      of_query, *of_keys = run(*of_keys, segments)
    else:
      blocks = [_cut(x, block, axis=2) for x in of_keys]
      blocks += [segments if segments is None else _cut(segments, block, axis=1)]

      def add(total: Array, block: tuple) -> tuple[Array, tuple[Array, Array]]:
        of_query, *of_block = run(*block)
        return total + of_query, tuple(of_block)

      of_query, of_keys = jax.lax.scan(add, jnp.zeros(query.shape, jnp.float32), tuple(blocks))
      of_keys = [rearrange(x, "n b k t d -> b k (n t) d") for x in of_keys]
    return of_query[:, :, :rows], *(x[:, :, :columns] for x in of_keys)

  def _in_lanes(
    self, query: Array, of_keys: tuple[Array, Array], seen: Array | None
  ) -> tuple[Array, tuple[Array, ...], Array | None]:
    """Padded to whole blocks; 1 where a key is there, None when all of them are."""
    batch, _, length, _ = of_keys[0].shape
    whole = length + -length % LANES
    if seen is None and length == whole:
      segments = None
    else:
      seen = jnp.ones((batch, length), bool) if seen is None else seen
      segments = jnp.pad(seen, ((0, 0), (0, whole - length))).astype(jnp.int32)
    # Rows in as many lanes as divide into few, even blocks of both kernels.
    most = max(self._forward_blocks[0], self._backward_blocks[0]) // LANES
    lanes = -(-query.shape[2] // LANES)
    blocks = -(-lanes // most)
    query = _padded(query, LANES * blocks * -(-lanes // blocks))
    return query, tuple(_padded(x, whole) for x in of_keys), segments


_KERNELS = {"dense": Dense, "splash": Splash}


def _splash_forward(
  query, key, value, segments, *, largest, sees, interpret
) -> tuple[Array, Array]:
  blocks = _fitted(query, key, largest)
  info, function = _mask(sees, query, key, blocks, backward=False)
  out, (lse,) = kernels._splash_attention_forward(
    info,
    query,
    key,
    value,
    _segment_ids(segments, query),
    None,
    mask_value=HIDDEN,
    is_mqa=False,
    block_sizes=splash.BlockSizes(*blocks),
    residual_checkpoint_name=None,
    save_residuals=True,
    mask_function=function,
    interpret=interpret,
  )
  return out, lse


def _splash_backward(
  query, key, value, lse, of_out, inner, segments, *, largest, sees, interpret
) -> tuple[Array, Array, Array]:
  rows, columns, compute = _fitted(query, key, largest)
  info, function = _mask(sees, query, key, (rows, columns, compute), backward=True)
  layout = splash.QKVLayout.HEAD_DIM_MINOR
  return kernels._splash_attention_bwd_dkv(
    query,
    key,
    value,
    _segment_ids(segments, query),
    None,
    lse,
    of_out,
    inner,
    bq=rows,
    bkv=columns,
    bkv_compute=compute,
    is_mqa=False,
    mask_info=info,
    mask_value=HIDDEN,
    attn_logits_soft_cap=None,
    use_fused_bwd_kernel=True,
    q_layout=layout,
    k_layout=layout,
    v_layout=layout,
    mask_function=function,
    interpret=interpret,
  )


def _on_backend(
  kernel: Callable, largest: Blocks, sees: Sees | None, segments: Array | None
) -> Callable:
  """The kernel for every example, compiled on a TPU and interpreted elsewhere."""

  def run(interpret: bool, *arrays: Array):
    one = functools.partial(kernel, largest=largest, sees=sees, interpret=interpret)
    return jax.vmap(one)(*arrays)

  def dispatch(*arrays: Array):
    both = dict(tpu=functools.partial(run, False), default=functools.partial(run, True))
    return jax.lax.platform_dependent(*arrays, segments, **both)

  return dispatch


def _mask(sees: Sees | None, query: Array, key: Array, blocks: Blocks, backward: bool):
  """What a kernel needs to know of its blocks, and its function of indices."""
  shape = query.shape[1], key.shape[1]
  one = splash.FullMask(shape) if sees is None else _Computed(shape, sees)
  library = kernels.mask_info_lib
  process = library.process_mask
  if backward:
    process = functools.partial(library.process_mask_dkv, shrink_grid=False)
  masks = splash.MultiHeadMask([one] * query.shape[0])
  info, function = process(masks, blocks[:2], head_shards=1, q_seq_shards=1)
  return jax.tree.map(jnp.asarray, info), function


class _Computed(splash.splash_attention_mask._ComputableMask):
  """A mask made in the kernel from the indices of queries and keys."""

  def __getitem__(self, index: tuple) -> np.ndarray:
    if hasattr(self.mask_function, "block"):
      return self.mask_function.block(*index)
    with jax.ensure_compile_time_eval():
      return np.asarray(super().__getitem__(index))

  def __eq__(self, other: object) -> bool:
    same = isinstance(other, _Computed) and self.shape == other.shape
    return same and self.mask_function == other.mask_function

  def __hash__(self) -> int:
    return hash((self.shape, self.mask_function))


def _segment_ids(segments: Array | None, query: Array) -> splash.SegmentIds | None:
  if segments is None:
    return None
  return splash.SegmentIds(jnp.ones(query.shape[1], jnp.int32), segments)


def _fitted(query: Array, key: Array, largest: Blocks) -> Blocks:
  """Blocks that divide the padded lengths: products near their largest, then the widest keys."""
  rows, columns, compute = (n // LANES for n in largest)
  lanes = key.shape[1] // LANES
  for product in range(compute, 0, -1):
    fitting = [n for n in range(product, columns + 1, product) if lanes % n == 0]
    if fitting and (fitting[-1] >= columns // 2 or product == 1 or fitting[-1] == lanes):
      break
  row_lanes = query.shape[1] // LANES
  rows = max(n for n in range(1, rows + 1) if row_lanes % n == 0)
  return LANES * rows, LANES * fitting[-1], LANES * product


def _cut(x: Array, length: int, axis: int) -> Array:
  """Pieces along an axis, first."""
  return jnp.stack(jnp.split(x, x.shape[axis] // length, axis))


def _padded(x: Array, length: int) -> Array:
  missing = [(0, 0)] * x.ndim
  missing[2] = (0, length - x.shape[2])
  return jnp.pad(x, missing) if length > x.shape[2] else x
