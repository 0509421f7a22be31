"""The Large Performance Model: the transformer with its text and audio encoders."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpm_jax.models.audio import AudioConfig, AudioEncoder
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.text import FrozenText, TextConfig, TextEncoder
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.umt5 import UMT5Config
from lpm_jax.models.wav2vec2 import AudioAdapter, Wav2Vec2Config


@dataclasses.dataclass(frozen=True)
class LPMConfig:
  """Sizes of the whole model; by default the `puppets` scale, where the encoders train along.

  Args:
    transformer: the trunk.
    audio: the small audio encoders. Its fps holds in any case.
    text: the small text encoder. Its length holds in any case.
    frozen_text: a published text encoder, whose features are read in place of tokens.
    frozen_audio: a published audio encoder, whose hidden states are read in place of waveforms.
  """

  transformer: TransformerConfig = TransformerConfig()
  audio: AudioConfig = AudioConfig()
  text: TextConfig = TextConfig()
  frozen_text: UMT5Config | None = None
  frozen_audio: Wav2Vec2Config | None = None

  def inputs(self) -> dict[str, str]:
    """The field of a batch that holds each condition: text, speak, listen."""
    audio = "features" if self.frozen_audio else "audio"
    return {
      "text": "text_features" if self.frozen_text else "text_tokens",
      "speak": f"speak_{audio}",
      "listen": f"listen_{audio}",
    }


class LPM(nnx.Module):
  """Velocity of video latents from raw conditions.

  Args:
    config: sizes.
    rngs: random streams; `params` is used.
  """

  def __init__(self, config: LPMConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.text = _text_encoder(config, rngs)
    self.speak, self.listen = _audio_encoder(config, rngs), _audio_encoder(config, rngs)
    self.transformer = VideoTransformer(config.transformer, rngs=rngs)

  def encode_conditions(self, batch: dict[str, Array], frames: int | None = None) -> Conditions:
    """Encodes text and both tracks.

    Args:
      batch: text_tokens int32 [B, L]; speak_audio, listen_audio [B, S]; references [B, R, H, W, C];
        reference_kind, reference_label int32 [B, R]; optionally drop_text, drop_speak, drop_listen
        bool [B], which put the learned null in place of the condition. With frozen encoders
        text_features [B, L, D_text]; speak_features, listen_features [B, S50, layers + 1, width].
      frames: latent frames F; by default as many as batch["latents"] has.
    """
    frames = frames or batch["latents"].shape[1]
    given = {name: batch[field] for name, field in self.config.inputs().items()}
    return Conditions(
      text=dropped_or(self.text(given["text"]), self.text.null, batch.get("drop_text")),
      speak=dropped_or(
        self.speak(given["speak"], frames), self.speak.null, batch.get("drop_speak")
      ),
      listen=dropped_or(
        self.listen(given["listen"], frames), self.listen.null, batch.get("drop_listen")
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

  def __call__(
    self,
    latents: Array,
    timestep: Array,
    conditions: Conditions,
    time: Array | None = None,
  ) -> Array:
    """See VideoTransformer."""
    return self.transformer(latents, timestep, conditions, time=time)


def _text_encoder(config: LPMConfig, rngs: nnx.Rngs) -> nnx.Module:
  if config.frozen_text:
    return FrozenText(config.frozen_text.width, rngs=rngs)
  return TextEncoder(config.text, rngs=rngs)


def _audio_encoder(config: LPMConfig, rngs: nnx.Rngs) -> nnx.Module:
  if config.frozen_audio:
    width = config.transformer.audio_width
    return AudioAdapter(config.frozen_audio, width, fps=config.audio.fps, rngs=rngs)
  return AudioEncoder(config.audio, rngs=rngs)


def dropped_or(encoded: Array, null: nnx.Param, dropped: Array | None) -> Array:
  """A condition [B, ...], its null where `dropped` bool [B]."""
  if dropped is None:
    return encoded
  return jnp.where(dropped.reshape(-1, *(1,) * (encoded.ndim - 1)), null[...], encoded)
