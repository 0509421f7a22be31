"""Conditions of training windows, and sample videos while the Base model trains."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.clip import audio_samples
from data_pipelines.loader import EXTENSION
from lpm_jax import media
from lpm_jax.diffusion import guidance, solvers
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.models.pixels import to_pixels
from lpm_jax.models.vae import VideoVAE
from lpm_jax.weights import loading


def encode_window(model: LPM, batch: dict[str, jax.Array]) -> Conditions:
  """Conditions of a batch of `loader.example_from_clip`; audio from each window's start on."""
  frames = batch["latents"].shape[1]
  conditions = model.encode_conditions(batch, frames + EXTENSION[1])
  cut = jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=frames))
  return conditions.replace(
    speak=cut(conditions.speak, batch["start"]), listen=cut(conditions.listen, batch["start"])
  )


def write_samples(
  model: LPM, batch: dict[str, np.ndarray], workdir: str, step: int, config: ConfigDict
):
  """`write_pairs` of videos that the model makes from the latents that a batch gives.

  Args:
    config: `sample_steps`, `sample_shift`, `sample_guidance` (text and audio) and `vae`, a weights
      folder.
  """
  made = _sample(
    *nnx.split(model),
    batch,
    steps=config.sample_steps,
    shift=config.sample_shift,
    strength=config.sample_guidance,
  )
  vae = loading.load_vae(config.vae)
  write_pairs(_decode(*nnx.split(vae), made), batch, vae, workdir, step, model.config.audio.fps)


def write_pairs(
  made: jax.Array,
  batch: dict[str, np.ndarray],
  vae: VideoVAE,
  workdir: str,
  step: int,
  fps: float,
):
  """Writes workdir/samples/STEP-INDEX.mp4 for every clip of a batch of windows from clip starts.

  Left: the video made, uint8 [B, T, H, W, 3]; right: the clip, as the autoencoder decodes it.
  """
  clips = _decode(*nnx.split(vae), batch["latents"])
  frames = np.concatenate([np.asarray(made), np.asarray(clips)], axis=3)
  folder = pathlib.Path(workdir) / "samples"
  folder.mkdir(parents=True, exist_ok=True)
  for index, video in enumerate(frames):
    sound = np.stack([batch[track][index] for track in ("speak_audio", "listen_audio")], axis=1)
    sound = sound[: audio_samples(len(video), fps)]
    path = folder / f"{step:07d}-{index}.mp4"
    media.write_video(path, video, fps, sound, scale=4)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("steps", "shift", "strength"))
def _sample(
  graphdef: nnx.GraphDef,
  state: nnx.State,
  batch: dict[str, jax.Array],
  *,
  steps: int,
  shift: float,
  strength: float,
) -> jax.Array:
  model = nnx.merge(graphdef, state)
  latents = batch["latents"].astype(jnp.float32)
  velocity = guidance.guided_velocity(model, encode_window(model, batch), strength, strength)
  noise = jax.random.normal(jax.random.key(0), latents.shape)
  given = jnp.arange(latents.shape[1]) < batch["known"][:, None]
  return solvers.sample(velocity, noise, latents, given, steps=steps, shift=shift)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef: nnx.GraphDef, state: nnx.State, latents: jax.Array) -> jax.Array:
  vae: VideoVAE = nnx.merge(graphdef, state)
  return to_pixels(vae.decode(latents.astype(jnp.float32)))
