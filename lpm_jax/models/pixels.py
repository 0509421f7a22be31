"""Pixels: uint8 outside, [-1, 1] inside."""

import jax.numpy as jnp
from jax import Array


def from_pixels(pixels: Array) -> Array:
  """uint8 0 .. 255 -> fp32 -1 .. 1, any shape."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(video: Array) -> Array:
  """-1 .. 1 -> uint8 0 .. 255, any shape; what lies outside is cut off."""
  return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
