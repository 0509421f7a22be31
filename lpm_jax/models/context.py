"""Attention of tokens that lie apart over the mesh: each device has a part of every grid's tokens.

Context parallelism in three ways, which give the same result: `gather` brings all keys to every
device; `ulysses` trades tokens for heads and back (arXiv 2309.14509); `ring` sends keys around.
Since every device has tokens of all grids, causal masks leave all of them the same work.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from jax.sharding import PartitionSpec

from lpm_jax.models.attention import GridMask, attend
from lpm_jax.models.flash import How, attend_parts
from lpm_jax.parallel import layout

EXCHANGES = ("gather", "ulysses", "ring")
_AXIS = "context"
WHOLE = 2048  # keys of a stream are filled up to multiples, the widest blocks of the kernels


@dataclasses.dataclass(frozen=True)
class Grids:
  """Which grids a sequence has, and what they see of each other.

  Attributes:
    frames: grids of video, which are all there; references follow.
    present: bool [B, G], whether a grid is there.
    mask: None: everything sees everything.
  """

  frames: int
  present: Array
  mask: GridMask | None = None

  @property
  def count(self) -> int:
    """Frames and references."""
    return self.present.shape[1]

  def visible(self) -> Array:
    """Grids that see grids: bool [B, 1 or G, G]."""
    present = self.present[:, None]
    if self.mask is None:
      return present
    index = jnp.arange(present.shape[2])
    return self.mask(index[:, None], index[None]) & present


def attend_grids(
  query: Array,
  key: Array,
  value: Array,
  grids: Grids,
  *,
  kernel: str,
  exchange: str = "gather",
  chip: str = "v5p",
) -> Array:
  """Self-attention; query, key, value and the result are [B, G, N, K, d].

  Args:
    kernel: "dense"; "splash" on TPUs; "cudnn" on GPUs.
    exchange: one of EXCHANGES, where tokens lie apart.
    chip: whose blocks the kernel for TPUs takes, see flash.BLOCKS.

  Raises ValueError where tokens or heads do not divide among the devices.
  """
  devices = layout.size("queries")
  query = query * query.shape[-1] ** -0.5
  if kernel == "dense" and devices == 1:
    return _like(query, _whole(query, key, value, grids, kernel))
  for name, count in (("tokens", query.shape[2]), ("heads", query.shape[3])):
    if count % devices and (name == "tokens" or exchange == "ulysses"):
      raise ValueError(
        f"attention by {exchange}: {count} {name} do not divide among {devices} devices"
      )
  names = ("batch", None, "queries", "heads", None)
  tokens = layout.spec(names, query.shape)
  rows = PartitionSpec(*tokens[:1])
  run = functools.partial(
    _attend_local, frames=grids.frames, mask=grids.mask, kernel=kernel, exchange=exchange
  )
  run = functools.partial(run, devices=devices, chip=chip)
  return _shared(run, (tokens, tokens, tokens, rows), tokens)(query, key, value, grids.present)


def attend_from_video(
  query: Array,
  key: Array,
  value: Array,
  *,
  mask: Array | None = None,
  kernel: str = "dense",
  chip: str = "v5p",
) -> Array:
  """Cross-attention of video tokens [B, F, N, K, d] to keys [B, T, K, d] that all devices have.

  `mask`, bool [F, N, T] or [F, 1, T], says what a token may look at. The fused kernels take none.
  Returns [B, F, N, K, d].
  """

  def local(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    joined = rearrange(query, "b f n k d -> b (f n) k d")
    if kernel == "splash":
      query_first, *others = (jnp.swapaxes(x, 1, 2) for x in (joined, key, value))
      how = How(kernel, chip, (None,), residuals=False)  # few keys: cheaper anew than kept
      scaled = query_first * query.shape[-1] ** -0.5
      made = attend_parts(how, scaled, *((x,) for x in others), (None,))
      return _like(query, jnp.swapaxes(made, 1, 2))
    of_tokens = None
    if mask is not None:
      of_tokens = jnp.broadcast_to(mask, (*query.shape[1:3], mask.shape[2]))
      of_tokens = of_tokens.reshape(1, 1, joined.shape[1], -1)
    unfused = kernel if mask is None else "dense"  # masks by frame are small
    return _like(query, attend(joined, key, value, mask=of_tokens, kernel=unfused))

  if kernel != "splash" and layout.size("queries") == 1:
    return local(query, key, value, mask)
  tokens = layout.spec(("batch", None, "queries", "heads", None), query.shape)
  whole = layout.spec(("batch", None, "heads", None), key.shape)
  of_mask = layout.spec((None, "queries", None), mask.shape) if mask is not None else None
  return _shared(local, (tokens, whole, whole, of_mask), tokens)(query, key, value, mask)


def attend_cached(
  query: Array,
  keys: Sequence[Array],
  values: Sequence[Array],
  seen: Array,
  *,
  kernel: str,
  chip: str = "v5p",
) -> Array:
  """Attention of queries [B, K, S, d] to keys and values [B, K, G, N, d], joined along G.

  `seen`, bool [B, total G], are the grids that are there. Heads lie apart, where others have
  tokens. Returns [B, K, S, d].
  """

  def local(query: Array, keys: Sequence[Array], values: Sequence[Array], seen: Array) -> Array:
    tokens = keys[0].shape[3]
    shown = jnp.repeat(seen, tokens, axis=1)
    # Filled up, so that the kernel's blocks of keys are as wide as they can be.
    more = -shown.shape[1] % WHOLE if shown.shape[1] > WHOLE else 0

    def joined(parts: Sequence[Array]) -> Array:
      whole = rearrange(jnp.concatenate(parts, axis=2), "b k g n d -> b k (g n) d")
      return jnp.pad(whole, ((0, 0), (0, 0), (0, more), (0, 0)))

    shown = jnp.pad(shown, ((0, 0), (0, more)))
    query = query * query.shape[-1] ** -0.5
    how = How(kernel, chip, (None,))
    return attend_parts(how, query, (joined(keys),), (joined(values),), (shown,))

  rows = layout.spec(("batch", "cached", None, None), query.shape)
  cached = layout.spec(("batch", "cached", None, None, None), keys[0].shape)
  given = rows, cached, cached, PartitionSpec(*rows[:1])
  return _shared(local, given, rows)(query, tuple(keys), tuple(values), seen)


def _attend_local(
  query: Array,
  key: Array,
  value: Array,
  present: Array,
  *,
  frames: int,
  mask: GridMask | None,
  kernel: str,
  exchange: str,
  devices: int,
  chip: str,
) -> Array:
  """One device's part; `query` is scaled."""
  ring = exchange == "ring" and devices > 1
  if devices > 1 and exchange == "gather":
    key, value = (jax.lax.all_gather(x, _AXIS, axis=2, tiled=True) for x in (key, value))
  if devices > 1 and exchange == "ulysses":
    apart = functools.partial(jax.lax.all_to_all, axis_name=_AXIS, tiled=True)
    query, key, value = (apart(x, split_axis=3, concat_axis=2) for x in (query, key, value))
  tokens = key.shape[2]
  if kernel == "cudnn":
    made = _whole(query, key, value, Grids(frames, present, mask), kernel)
  else:
    query_first = rearrange(query, "b g n k d -> b k (g n) d")
    cut = slice(0, frames), slice(frames, None)
    cut = cut[: 1 + (key.shape[1] > frames)]
    parts = [
      tuple(rearrange(x[:, part], "b g n k d -> b k (g n) d") for part in cut) for x in (key, value)
    ]
    seen = (None, jnp.repeat(present[:, frames:], tokens, axis=1))[: len(cut)]
    sees = (mask and _Sees(mask, query.shape[2], tokens), None)[: len(cut)]
    how = How(kernel, chip, sees, _AXIS if ring else None, devices if ring else 1)
    made = jnp.swapaxes(attend_parts(how, query_first, *parts, seen), 1, 2)
  made = _like(query, made)
  if devices > 1 and exchange == "ulysses":
    made = apart(made, split_axis=2, concat_axis=3)
  return made


def _whole(query: Array, key: Array, value: Array, grids: Grids, kernel: str) -> Array:
  """Attention [B, G N, K, d] of all queries at once, by a kernel of `attend`; query is scaled."""
  mask = None
  if grids.mask or grids.count > grids.frames:
    mask = jnp.repeat(grids.visible(), key.shape[2], axis=2)
    mask = mask if mask.shape[1] == 1 else jnp.repeat(mask, query.shape[2], axis=1)
    mask = mask[:, None]
  joined = (rearrange(x, "b g n k d -> b (g n) k d") for x in (query, key, value))
  return attend(*joined, mask=mask, scale=1.0, kernel=kernel)


def _shared(run, inputs: tuple, outputs: PartitionSpec):
  """`run` on each device's part; as it is without a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return run
  return jax.shard_map(run, in_specs=inputs, out_specs=outputs, check_vma=False)


def _like(query: Array, made: Array) -> Array:
  return rearrange(made, "b (g n) k d -> b g n k d", g=query.shape[1])


@dataclasses.dataclass(frozen=True)
class _Sees:
  """A mask of grids for tokens: a function that kernels can hash."""

  mask: GridMask
  query_tokens: int
  key_tokens: int

  def __call__(self, query: Array, key: Array) -> Array:
    return self.mask(query // self.query_tokens, key // self.key_tokens)

  def block(self, queries: slice, keys: slice) -> np.ndarray:
    """The same for ranges, bool [queries, keys]: grids are looked up, each once.

    A kernel asks for all of its blocks while it is traced: 9 billion pairs of a 17B clip that is
    there twice.
    """
    query = np.arange(queries.start, queries.stop) // self.query_tokens
    key = np.arange(keys.start, keys.stop) // self.key_tokens
    grids = np.arange(query[0], query[-1] + 1)[:, None], np.arange(key[0], key[-1] + 1)[None]
    return self.mask(*grids)[np.ix_(query - query[0], key - key[0])]
