"""Classifier-free guidance with a strength for text and one for audio, as one call of three."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM

VelocityFn = Callable[[Array, Array], Array]


def guided_velocity(model: LPM, conditions: Conditions, text: float, audio: float) -> VelocityFn:
  """velocity(latents [B, F, H, W, C], timestep [B, F]) under guidance.

  u + audio (d - u) + text (c - d), with u nothing but identity, d audio without text, c everything
  (InfiniteTalk's form). `model` may be anything with LPM's call and nulls. Both
  strengths 1 need one evaluation, otherwise the three run as one batch.
  """
  if text == audio == 1.0:
    return lambda latents, timestep: model(latents, timestep, conditions)
  no_text = model.null_text(conditions)
  branches = (conditions, no_text, model.null_audio(no_text))
  stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *branches)

  def velocity(latents: Array, timestep: Array) -> Array:
    out = model(jnp.tile(latents, (3, 1, 1, 1, 1)), jnp.tile(timestep, (3, 1)), stacked)
    full, no_text, nothing = jnp.split(out, 3)
    return nothing + audio * (no_text - nothing) + text * (full - no_text)

  return velocity
