"""Conditions under which our transformer is Wan2.1's: a text, silence, no references."""

import jax.numpy as jnp
from jax import Array

from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import TransformerConfig


def no_references(
  config: TransformerConfig, text: Array, shape: tuple[int, int, int, int, int]
) -> Conditions:
  """For latents [B, F, H, W, C] of `shape`."""
  batch, frames, height, width, channels = shape
  silence = jnp.zeros((batch, frames, 4, config.audio_width))
  return Conditions(
    text=text,
    speak=silence,
    listen=silence,
    references=jnp.zeros((batch, 1, height, width, channels)),
    reference_kind=jnp.full((batch, 1), -1, jnp.int32),
    reference_label=jnp.full((batch, 1), -1, jnp.int32),
  )
