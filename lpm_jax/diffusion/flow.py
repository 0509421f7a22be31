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


def twin_noise(latents: Array, noise: Array, t: Array) -> Array:
  """Noise that gives twins one x_t, that of their mean: nothing but references tells them apart.

  Were the noise the same, x_t would differ, and the difference of predictions would gain from
  making more of every small thing in x_t, whose noise cancels there and nowhere else.

  Shapes: latents, noise [2 B, F, H, W, C], the second half the twins of the first; t [2 B, F].
  """
  one, other = jnp.split(latents, 2)
  half = 0.5 * jnp.concatenate([other - one, one - other])
  t = _per_frame(t)
  return noise + jnp.where(t > 0, (1.0 - t) / jnp.maximum(t, 1e-3), 0.0) * half


def twin_loss(velocity: Array, target: Array, weight: Array, floor: float = 0.004) -> Array:
  """How far predictions for twins fail to differ as the twins do: 0, or 1 where they do not differ.

  Twins [2 B, F, H, W, C], the second half those of the first, share timestep and noisy latents, so
  in the difference of their errors all cancels that references cannot tell (what happens, and
  when). Mean over pairs of its square relative to the twins' own difference, which differs by 100
  times between a wrinkle and a bun.

  Args:
    velocity, target, weight: as in `flow_loss`.
    floor: squared difference per number that counts as none.
  """
  between = jnp.stack([velocity.astype(jnp.float32) - target, target])
  one, other = jnp.split(between, 2, axis=1)
  error, own = (jnp.square(one - other).mean(axis=(3, 4, 5)) * weight[: one.shape[1]]).sum(axis=2)
  return (error / (own + floor * jnp.maximum(weight[: one.shape[1]].sum(axis=1), 1e-6))).mean()


def flow_loss(velocity: Array, target: Array, weight: Array, place: Array | float = 1.0) -> Array:
  """`clip_errors` averaged over clips."""
  return clip_errors(velocity, target, weight, place).mean()


def clip_errors(velocity: Array, target: Array, weight: Array, place: Array | float = 1.0) -> Array:
  """Mean squared velocity error of each clip over the latent frames that count: fp32 [B].

  Shapes: velocity, target = noise - clean [B, F, H, W, C]; weight [B, F], 0 for frames given clean;
  place [H, W] of mean 1.
  """
  error = jnp.square(velocity.astype(jnp.float32) - target).mean(axis=4)
  error = (place * error).mean(axis=(2, 3))
  return (error * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1e-6)
