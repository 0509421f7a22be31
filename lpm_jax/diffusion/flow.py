"""Flow matching on latents: x_t = (1 - t) x0 + t noise, v = noise - x0; t in [0, 1], 0 is clean."""

import jax
import jax.numpy as jnp
from jax import Array


def _per_frame(t: Array) -> Array:
  return t[:, :, None, None, None]


def shift_timestep(t: Array, shift: float) -> Array:
  """Moves timesteps towards noise: k t / (1 + (k - 1) t) (Wan2.1: 3 at 480p, 5 at 720p)."""
  return shift * t / (1.0 + (shift - 1.0) * t)


def sample_timesteps(key: Array, batch: int, shift: float) -> Array:
  """Shifted timesteps fp32 [batch], uniform before the shift and spread evenly over the batch.

  One uniform draw in each of `batch` equal parts of [0, 1], in random order: the same distribution
  as independent draws, with less variance.
  """
  offset, order = jax.random.split(key)
  strata = (jnp.arange(batch) + jax.random.uniform(offset, (batch,))) / batch
  return shift_timestep(jax.random.permutation(order, strata), shift)


def add_noise(clean: Array, noise: Array, t: Array) -> Array:
  """x_t of clean latents. Shapes: clean, noise [B, F, H, W, C]; t [B, F]."""
  return (1.0 - _per_frame(t)) * clean + _per_frame(t) * noise


def velocity_to_clean(noisy: Array, velocity: Array, t: Array) -> Array:
  """Clean latents from a velocity prediction: x0 = x_t - t v. Shapes as in `add_noise`."""
  return noisy - _per_frame(t) * velocity


def motion_map(clean: Array) -> Array:
  """How much a batch of latents [B, F, H, W, C] moves at each place: fp32 [H, W], of mean 1.

  The mean over the batch of the variance in time. One map for the whole batch: a weight of each
  clip's own would draw predictions towards clips that move, one of the place leaves the
  minimiser of the loss where it is. Faces are framed alike, so it is a soft mask of eyes and lips.
  """
  variance = jnp.var(clean.astype(jnp.float32), axis=1).mean(axis=(0, 3))
  return variance / (variance.mean() + 1e-8)


def flow_loss(velocity: Array, target: Array, weight: Array, place: Array | float = 1.0) -> Array:
  """Mean squared velocity error over the latent frames that count, averaged over clips.

  Shapes: velocity, target = noise - clean [B, F, H, W, C]; weight [B, F], 0 for frames given clean;
  place [H, W] of mean 1.
  """
  error = jnp.square(velocity.astype(jnp.float32) - target).mean(axis=4)
  error = (place * error).mean(axis=(2, 3))
  per_clip = (error * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1e-6)
  return per_clip.mean()
