"""The Large Performance Model: the transformer with its text and audio encoders."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpm_jax.models.audio import AudioConfig, AudioEncoder
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.text import TextConfig, TextEncoder
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer


@dataclasses.dataclass(frozen=True)
class LPMConfig:
  """Sizes of the whole model; by default the `puppets` scale, where the encoders train along."""

  transformer: TransformerConfig = TransformerConfig()
  audio: AudioConfig = AudioConfig()
  text: TextConfig = TextConfig()


class LPM(nnx.Module):
  """Velocity of video latents from raw conditions.

  Args:
    config: sizes.
    rngs: random streams; `params` is used.
  """

  def __init__(self, config: LPMConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.text = TextEncoder(config.text, rngs=rngs)
    self.speak = AudioEncoder(config.audio, rngs=rngs)
    self.listen = AudioEncoder(config.audio, rngs=rngs)
    self.transformer = VideoTransformer(config.transformer, rngs=rngs)

  def encode_conditions(self, batch: dict[str, Array], frames: int | None = None) -> Conditions:
    """Encodes text and both tracks.

    Args:
      batch: text_tokens int32 [B, L]; speak_audio, listen_audio [B, S]; references [B, R, H, W, C];
        reference_kind, reference_label int32 [B, R]; optionally drop_text, drop_speak, drop_listen
        bool [B], which put the learned null in place of the condition.
      frames: latent frames F; by default as many as batch["latents"] has.
    """
    frames = frames or batch["latents"].shape[1]
    return Conditions(
      text=_drop(self.text(batch["text_tokens"]), self.text.null, batch.get("drop_text")),
      speak=_drop(
        self.speak(batch["speak_audio"], frames), self.speak.null, batch.get("drop_speak")
      ),
      listen=_drop(
        self.listen(batch["listen_audio"], frames), self.listen.null, batch.get("drop_listen")
      ),
      references=batch["references"],
      reference_kind=batch["reference_kind"],
      reference_label=batch["reference_label"],
    )

  def null_text(self, conditions: Conditions) -> Conditions:
    """The same conditions with the text dropped."""
    return conditions.replace(text=jnp.broadcast_to(self.text.null[...], conditions.text.shape))

  def null_audio(self, conditions: Conditions) -> Conditions:
    """The same conditions with both audio tracks dropped."""
    return conditions.replace(
      speak=jnp.broadcast_to(self.speak.null[...], conditions.speak.shape),
      listen=jnp.broadcast_to(self.listen.null[...], conditions.listen.shape),
    )

  def __call__(self, latents: Array, timestep: Array, conditions: Conditions) -> Array:
    """See VideoTransformer."""
    return self.transformer(latents, timestep, conditions)


def _drop(encoded: Array, null: nnx.Param, dropped: Array | None) -> Array:
  if dropped is None:
    return encoded
  return jnp.where(dropped.reshape(-1, *(1,) * (encoded.ndim - 1)), null[...], encoded)
