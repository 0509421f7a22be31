"""Features of frozen encoders: what training and streaming read in place of texts and waveforms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.clip import Clip, EncodedClip
from data_pipelines.tokenizer import UMT5Tokenizer
from lpm_jax.models.umt5 import UMT5Encoder
from lpm_jax.models.wav2vec2 import Wav2Vec2Encoder, streamed_states
from lpm_jax.weights import loading


class FrozenEncoders:
  """umT5 and wav2vec 2.0 at work on clips; either may be left out.

  Args:
    text, tokenizer: the text encoder and its tokenizer.
    audio: the audio encoder. It hears every track in windows of two past seconds and a new one, as
      in a stream.
  """

  def __init__(
    self,
    text: UMT5Encoder | None = None,
    tokenizer: UMT5Tokenizer | None = None,
    audio: Wav2Vec2Encoder | None = None,
  ):
    self._tokenizer = tokenizer
    self._text = text and functools.partial(_read, *nnx.split(text))
    self._audio = audio and functools.partial(_hear, *nnx.split(audio))

  def __call__(self, clip: Clip | EncodedClip) -> dict[str, np.ndarray]:
    """text_features, speak_features, listen_features of a clip, bfloat16; see EncodedClip."""
    features = {}
    if self._text:
      features["text_features"] = self.read(clip.text)
    if self._audio:
      tracks = self.hear(np.stack([clip.speak_audio, clip.listen_audio]))
      features["speak_features"], features["listen_features"] = tracks
    return features

  def read(self, text: str) -> np.ndarray:
    """Features bfloat16 [L, D_text] of the tokens of a text."""
    if not self._text:
      raise ValueError("frozen.text is empty: the model reads features of a text encoder")
    tokens = self._tokenizer(text)
    return np.asarray(self._text(tokens[None])[0])[: np.count_nonzero(tokens)]

  def hear(self, waveforms: np.ndarray) -> np.ndarray:
    """Hidden states bfloat16 [B, S50, layers + 1, width] of waveforms [B, S] at 16 kHz."""
    if not self._audio:
      raise ValueError("frozen.audio is empty: the model hears features of an audio encoder")
    return np.asarray(self._audio(waveforms))

  def added(self, clip: EncodedClip) -> EncodedClip:
    """The clip with its features; as it is where it has them already."""
    known = clip.text_features is not None or clip.speak_features is not None
    return clip if known else dataclasses.replace(clip, **self(clip))


@functools.partial(jax.jit, static_argnums=0)
def _read(graphdef: nnx.GraphDef, state: nnx.State, tokens: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, state)(tokens).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnums=0)
def _hear(graphdef: nnx.GraphDef, state: nnx.State, waveforms: jax.Array) -> jax.Array:
  return streamed_states(nnx.merge(graphdef, state), waveforms).astype(jnp.bfloat16)


def load_encoders(config: ConfigDict) -> FrozenEncoders | None:
  """The encoders that a config names; None when it names none.

  Args:
    config: `text` and `audio`, folders of `lpm weights import`, `tokenizer`, umT5's tokenizer.json,
      each "" to leave it out, and `length`, tokens of a text.

  Raises ValueError for a text encoder without its tokenizer, or a folder without the import.
  """
  if not (config.text or config.audio):
    return None
  if bool(config.text) != bool(config.tokenizer):
    raise ValueError(
      f"frozen.text is {config.text!r}, frozen.tokenizer is {config.tokenizer!r}: expected both"
    )
  return FrozenEncoders(
    text=loading.load_encoder(config.text, "umt5") if config.text else None,
    tokenizer=UMT5Tokenizer(config.tokenizer, config.length) if config.text else None,
    audio=loading.load_encoder(config.audio, "wav2vec2") if config.audio else None,
  )
