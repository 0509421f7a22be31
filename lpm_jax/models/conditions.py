"""What a video is conditioned on, as one pytree."""

from flax import struct
from jax import Array


@struct.dataclass
class Conditions:
  """Encoded conditions of a batch of clips.

  Shapes: text [B, L, D_text]; speak, listen [B, F, A, D_audio]; references [B, R, H, W, C] clean
  latents on the grid of the video; reference_kind, reference_label int32 [B, R]
  (clip.REFERENCE_KINDS, then VIEWS or EXPRESSIONS; kind -1 marks an empty slot, which nothing looks
  at).
  """

  text: Array
  speak: Array
  listen: Array
  references: Array
  reference_kind: Array
  reference_label: Array

  def without_references(self) -> "Conditions":
    """The same conditions with no slot for references."""
    names = ("references", "reference_kind", "reference_label")
    return self.replace(**{name: getattr(self, name)[:, :0] for name in names})
