"""Multi-stage identity: where each reference picture stands on the time axis.

LPM 1.0 appends the tokens of all references after the video tokens and tells them apart only by
rotary offsets, RoPE(t + o_kind + s_label, h, w), with no new parameters. The offsets are not
published: ours keep the three kinds apart from each other, from clips (8 s are 49 latent frames)
and from the streaming window.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class ReferenceOffsets:
  """Temporal index of a reference: start of its kind + stride * label.

  Args:
    starts: first index for global, body view and expression.
    stride: distance between labels of one kind.
  """

  starts: tuple[int, int, int] = (64, 80, 112)
  stride: int = 4

  def __call__(self, kind: Array, label: Array) -> Array:
    """int32 [B, R], [B, R] -> temporal index [B, R]; empty slots (kind -1) get any index."""
    return jnp.asarray(self.starts)[jnp.maximum(kind, 0)] + self.stride * label
