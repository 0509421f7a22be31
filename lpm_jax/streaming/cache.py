"""The cache of an endless stream: a pytree of fixed shape.

Grids in order: the main picture and the references, which stay; the first `sink` chunks, which stay
once they are there; and a ring of the last `window` chunks. Positions belong to slots, not to
chunks: whatever the age of the stream, the chunk that is made stands right after the window, so no
temporal index grows. Only the slot of the new chunk is written.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.cache import KV_AXES, KVCache


@struct.dataclass
class StreamCache:
  """Keys and values of what a chunk may look at.

  Attributes:
    pinned: main picture and references, R + 1 grids.
    key, value: of the chunks, [P, 2, B, K, (sink + window) * frames, N, d].
    chunks: int32 [], how many chunks the stream has had.
    causal: chunk length, sink and window.
  """

  pinned: KVCache
  key: Array
  value: Array
  chunks: Array
  causal: ChunkCausal = struct.field(pytree_node=False)

  @classmethod
  def empty(cls, pinned: KVCache, causal: ChunkCausal) -> "StreamCache":
    """The cache of a stream that begins, with what `VideoTransformer.remember` left."""
    grids = (causal.sink + causal.window) * causal.frames
    zeros = lambda x: jnp.zeros((*x.shape[:4], grids, *x.shape[5:]), x.dtype)  # noqa: E731
    return cls(pinned, zeros(pinned.key), zeros(pinned.value), jnp.int32(0), causal)

  def axes(self) -> "StreamCache":
    """Logical names of the axes, in place of the arrays."""
    return StreamCache(KVCache.axes(), KV_AXES, KV_AXES, (), self.causal)

  def start(self) -> Array:
    """Temporal index of the first frame of the next chunk; the picture stands at 0."""
    held = jnp.minimum(self.chunks, self.causal.sink + self.causal.window)
    return 1 + held * self.causal.frames

  def view(self) -> tuple[KVCache, KVCache]:
    """What the next chunk sees: pinned, and chunks, each grid at the place of its slot.

    They stay apart, for joined they would be a copy of the whole cache.
    """
    batch = self.pinned.seen.shape[0]
    rank = jnp.repeat(self._ranks(), self.causal.frames)
    within = jnp.tile(jnp.arange(self.causal.frames), self.causal.sink + self.causal.window)
    time = jnp.broadcast_to(1 + rank * self.causal.frames + within, (batch, len(rank)))
    seen = jnp.broadcast_to(rank >= 0, time.shape)
    return self.pinned, KVCache(self.key, self.value, time, seen)

  def pushed(self, kept: KVCache) -> "StreamCache":
    """The cache with one more chunk, in place of the oldest one of the window when it is full."""
    grid = self._slot() * self.causal.frames
    write = lambda into, new: jax.lax.dynamic_update_slice_in_dim(into, new, grid, 4)  # noqa: E731
    return self.replace(
      key=write(self.key, kept.key), value=write(self.value, kept.value), chunks=self.chunks + 1
    )

  def _slot(self) -> Array:
    """Slot of the next chunk."""
    sink, window = self.causal.sink, self.causal.window
    return jnp.where(self.chunks < sink, self.chunks, sink + (self.chunks - sink) % window)

  def _ranks(self) -> Array:
    """Place in the order of time of each slot's chunk, int32 [sink + window]; -1: empty."""
    sink, window = self.causal.sink, self.causal.window
    slot = jnp.arange(sink + window)
    age = (self.chunks - 1 - slot) % window  # of what lies in a slot of the ring: 0 is the newest
    newest = jnp.minimum(self.chunks, sink + window) - 1
    rank = jnp.where(slot < sink, slot, newest - age)
    return jnp.where(slot < self.chunks, rank, -1)
