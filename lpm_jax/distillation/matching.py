"""Distribution matching (DMD, arXiv 2311.18828 and 2405.14867) for flow-matching models.

Latents that a student made are noised; a frozen teacher and a model that follows the student, the
fake score, predict them clean. Where the two differ is where the student's distribution differs
from the teacher's.
"""

import jax
import jax.numpy as jnp
from jax import Array

from lpm_jax.diffusion import flow

CLAMP = 0.02, 0.98  # timesteps beyond say nothing, or everything


def draw_timesteps(key: Array, batch: int, shift: float) -> Array:
  """One timestep a clip, fp32 [batch]: shifted, then clamped."""
  return jnp.clip(flow.sample_timesteps(key, batch, shift), *CLAMP)


def direction(made: Array, fake: Array, real: Array, weight: Array) -> Array:
  """Where the student's latents should not go: (fake - real) / mean |made - real|, per clip.

  Args:
    made, fake, real: the student's latents and the two clean predictions of them [B, F, H, W, C].
    weight: [B, F], 0 for frames that were given.

  Returns fp32 [B, F, H, W, C], 0 in frames that were given and where it is not finite.
  """
  made, fake, real = (x.astype(jnp.float32) for x in (made, fake, real))
  weight = weight[:, :, None, None, None]
  apart = jnp.abs(made - real) * weight
  scale = apart.sum(axis=(1, 2, 3, 4), keepdims=True) / (
    weight.sum(axis=(1, 2, 3, 4), keepdims=True) * made[0, 0].size
  )
  return jnp.nan_to_num(weight * (fake - real) / scale, nan=0.0, posinf=0.0, neginf=0.0)


def matching_loss(made: Array, towards: Array, weight: Array) -> Array:
  """A loss of made whose gradient is `towards` [B, F, H, W, C], over the numbers that count.

  0.5 mean (made - stop(made - towards))^2 over the frames with weight [B, F].
  """
  target = jax.lax.stop_gradient(made - towards)
  error = jnp.square(made.astype(jnp.float32) - target).mean(axis=(2, 3, 4))
  return 0.5 * (error * weight).sum() / jnp.maximum(weight.sum(), 1e-6)
