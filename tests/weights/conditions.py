"""Conditions under which our transformer is Wan2.1's: a text, silence, no references."""

import jax.numpy as jnp
from jax import Array

from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import TransformerConfig


def no_references(
  config: TransformerConfig, text: Array, shape: tuple[int, int, int, int, int], slots: int = 1
) -> Conditions:
  """For latents [B, F, H, W, C] of `shape`, with `slots` places of references, all empty."""
  batch, frames, height, width, channels = shape
  silence = jnp.zeros((batch, frames, 4, config.audio_width))
  return Conditions(
    text=text,
    speak=silence,
    listen=silence,
    references=jnp.zeros((batch, slots, height, width, channels)),
    reference_kind=jnp.full((batch, slots), -1, jnp.int32),
    reference_label=jnp.full((batch, slots), -1, jnp.int32),
  )
