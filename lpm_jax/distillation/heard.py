"""What a stream hears and reads, made from windows of encoded clips as serving makes it."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from data_pipelines.clip import FEATURES_PER_SECOND, SAMPLE_RATE
from lpm_jax.models.audio import FRAMES_PER_LATENT
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM

TRACKS = ("speak", "listen")


def streamed_track(
  encoder: nnx.Module, sound: Array, chunks: int, frames: int, past: int, rate: float, fps: float
) -> Array:
  """A track as a stream encodes it, chunk by chunk, of nothing later than the chunk.

  Args:
    encoder: (sound, latents) -> [B, latents, A, D_audio].
    sound: [B, S, ...] from video frame 0, the main picture, on; what is missing is silence.
    chunks, frames: how many chunks, of how many latents.
    past: latents that are heard before each chunk.
    rate: of the sound, numbers a second.
    fps: video frames a second.

  Returns [chunks, B, past + frames, A, D_audio]. Raises ValueError for chunks that are no whole
  number of samples.
  """
  count = lambda video: round(video * rate / fps)  # noqa: E731
  samples, window = count(FRAMES_PER_LATENT * frames), count(FRAMES_PER_LATENT * past + 1)
  if abs(samples - FRAMES_PER_LATENT * frames * rate / fps) > 1e-6:
    raise ValueError(f"chunk of {frames} latents: no whole number of samples at {rate} Hz")
  lead, total = window - count(1), window + chunks * samples
  padding = [(0, 0)] * sound.ndim
  padding[1] = lead, max(total - lead - sound.shape[1], 0)
  sound = jnp.pad(sound, padding)
  # A latent more than is looked at: its first three frames lie before the window.
  latents = 1 + past + frames
  windows = (sound[:, c * samples : c * samples + window + samples] for c in range(chunks))
  return jnp.stack([encoder(heard, latents)[:, 1:] for heard in windows])


def streamed_conditions(
  lpm: LPM, batch: dict[str, Array], chunks: int, frames: int
) -> tuple[Conditions, Conditions]:
  """Conditions of a stream's beginning, and of its chunks, [chunks, B, ...].

  `batch` has windows from clip starts (`loader.example_from_clip`). Chunks have no references, for
  those of the beginning stay in the cache; the beginning hears silence.
  """
  given = {name: batch[field] for name, field in lpm.config.inputs().items()}
  rate = FEATURES_PER_SECOND if lpm.config.frozen_audio else SAMPLE_RATE
  fps, past = lpm.config.audio.fps, lpm.config.transformer.heard_before()
  tracks, silence = {}, {}
  for name in TRACKS:
    encoder, sound = getattr(lpm, name), given[name]
    tracks[name] = streamed_track(encoder, sound, chunks, frames, past, rate, fps)
    silence[name] = encoder(jnp.zeros_like(sound[:, :1]), 1)
  beginning = Conditions(
    text=lpm.text(given["text"]),
    references=batch["references"].astype(jnp.float32),
    reference_kind=batch["reference_kind"],
    reference_label=batch["reference_label"],
    **silence,
  )
  nothing = beginning.without_references()
  over_chunks = {
    name: jnp.broadcast_to(getattr(nothing, name), (chunks, *getattr(nothing, name).shape))
    for name in ("text", "references", "reference_kind", "reference_label")
  }
  return beginning, Conditions(**over_chunks, **tracks)


def whole(beginning: Conditions, chunks: Conditions, frames: int) -> Conditions:
  """Conditions of all frames at once: the main picture's, then each chunk's own `frames`."""

  def joined(name: str) -> Array:
    own = getattr(chunks, name)[:, :, -frames:]
    own = rearrange(own, "n b f a d -> b (n f) a d")
    return jnp.concatenate([getattr(beginning, name), own], axis=1)

  return beginning.replace(**{name: joined(name) for name in TRACKS})
