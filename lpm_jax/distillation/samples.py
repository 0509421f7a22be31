"""Streams of clips while a stage trains."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from lpm_jax.distillation import heard
from lpm_jax.models.lpm import LPM
from lpm_jax.models.pixels import to_pixels
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.models.vae import VideoVAE
from lpm_jax.streaming.sampler import OnlineLPM, StreamSettings

SEED = 20


def stream_clips(
  lpm: LPM,
  refiner: VideoTransformer,
  vae: VideoVAE,
  settings: StreamSettings,
  batch: dict[str, Array],
) -> tuple[Array, Array]:
  """Streams windows from clip starts as serving does, with the same noise every time.

  Args:
    lpm: encoders and backbone.
    refiner: makes the last evaluation of a chunk.
    vae: decodes.
    settings: levels and lengths.
    batch: of `loader.example_from_clip`, the picture and whole chunks.

  Returns latents [B, F, H, W, C] and videos uint8 [B, T, height, width, 3].
  """
  return _streamed(*nnx.split((lpm, refiner, vae)), settings, batch)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _streamed(
  graphdef: nnx.GraphDef, state: nnx.State, settings: StreamSettings, batch: dict[str, Array]
) -> tuple[Array, Array]:
  lpm, refiner, vae = nnx.merge(graphdef, state)
  online = OnlineLPM(lpm.transformer, refiner, vae, settings)
  frames = settings.causal.frames
  chunks = (batch["latents"].shape[1] - 1) // frames
  beginning, conditions = heard.streamed_conditions(lpm, batch, chunks, frames)
  picture = batch["latents"][:, :1].astype(jnp.float32)
  stream, first = online.begin(picture, beginning, jax.random.key(SEED))
  _, latents, video = online.run(stream, conditions)
  latents, video = (rearrange(x, "n b f ... -> b (n f) ...") for x in (latents, video))
  whole = jnp.concatenate([picture, latents], axis=1)
  return whole, to_pixels(jnp.concatenate([first, video], axis=1))
