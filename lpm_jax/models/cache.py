"""Keys and values that tokens leave behind for later calls of the transformer."""

from flax import struct
from jax import Array

KV_AXES = ("layers", None, "batch", "heads", "frames", "tokens", None)


@struct.dataclass
class KVCache:
  """Tokens of G grids (latent frames and reference pictures) in all P pairs of blocks.

  Attributes:
    key, value: [P, 2, B, K, G, N, d]; speak block first. Keys are stored before rotation,
      heads first, as attention kernels read them: no compiler copies a cache to turn it.
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


@struct.dataclass
class TurnedCache:
  """A cache as the passes of one chunk read it: keys stand where they are looked at.

  Attributes:
    key, value: [P, 2, B, K, G, N, d], keys turned.
    norm: fp32 [P, 2, B, K], largest norm of a key.
    seen: bool [B, G].
  """

  key: Array
  value: Array
  norm: Array
  seen: Array
