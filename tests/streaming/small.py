"""The smallest performer that has every part: chunks of 3 latents (half a second), 16x16 pixels."""

import functools

import jax
import numpy as np
from flax import nnx

from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.audio import AudioConfig
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.text import TextConfig
from lpm_jax.models.transformer import TransformerConfig
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.streaming.performer import Performer
from lpm_jax.streaming.sampler import StreamSettings
from tests.models.test_transformer import randomise

SIZES = LPMConfig(
  transformer=TransformerConfig(
    width=16, heads=2, layers=2, hidden=16, channels=2, text_width=8, audio_width=8
  ),
  audio=AudioConfig(width=8, bands=8, kernel=3, dilations=(1,)),
  text=TextConfig(width=8, heads=2, layers=1, length=16),
)
VAE = VAEConfig(base=4, multipliers=(1, 1, 1), temporal=(True, True), blocks=1, latent_channels=2)
SETTINGS = StreamSettings(ChunkCausal(frames=3, sink=1, window=2))
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)


@functools.cache
def make_models() -> tuple[LPM, VideoVAE]:
  """Models whose zero-initialised parameters are awake."""
  lpm = randomise(LPM(SIZES, rngs=nnx.Rngs(0)), jax.random.key(1))
  return lpm, randomise(VideoVAE(VAE, rngs=nnx.Rngs(0)), jax.random.key(2))


@functools.cache
def make_performer() -> Performer:
  """One performer for all tests: it compiles once."""
  return Performer(*make_models(), SETTINGS)
