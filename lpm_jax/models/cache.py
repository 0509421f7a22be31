"""Keys and values that tokens leave behind for later calls of the transformer."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

KV_AXES = ("layers", None, "batch", "frames", "tokens", "heads", None)


@struct.dataclass
class KVCache:
  """Tokens of G grids (latent frames and reference pictures) in all P pairs of blocks.

  Attributes:
    key, value: [P, 2, B, G, N, K, d]; speak block first. Keys are stored before rotation.
    time: int32 [B, G], the temporal index at which each grid stands when it is looked at.
    seen: bool [B, G]; a grid that is not seen is not there.
  """

  key: Array
  value: Array
  time: Array
  seen: Array

  @classmethod
  def axes(cls) -> "KVCache":
    """Logical names of the axes, in place of the arrays."""
    return cls(KV_AXES, KV_AXES, ("batch", None), ("batch", None))

  def joined(self, other: "KVCache") -> "KVCache":
    """The grids of both, its own first."""
    axes = KVCache(key=3, value=3, time=1, seen=1)
    join = lambda a, b, axis: jnp.concatenate([a, b], axis)  # noqa: E731
    return jax.tree.map(join, self, other, axes)
