"""Rotary positions: Wan2.1's three axes for video and references, one axis for audio.

Angles are computed from positions on the fly, so no table ends.
"""

import jax.numpy as jnp
from jax import Array

THETA = 10_000.0


def axis_widths(head: int) -> tuple[int, int, int]:
  """How a head of `head` channels is split over time, height and width (128 -> 44, 42, 42)."""
  side = 2 * (head // 6)
  return head - 2 * side, side, side


def angles(position: Array, width: int) -> Array:
  """Positions [...] -> angles fp32 [..., width / 2]."""
  frequency = THETA ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  return position.astype(jnp.float32)[..., None] * frequency


def grid_angles(time: Array, height: int, width: int, head: int) -> Array:
  """Angles of a stack of token grids.

  Args:
    time: temporal index of each grid [..., G].
    height: rows of a grid.
    width: columns of a grid.
    head: channels of a head.

  Returns:
    fp32 [..., G * height * width, head / 2], tokens in (grid, row, column) order.
  """
  widths = axis_widths(head)
  shape = (*time.shape, height, width)
  parts = [
    jnp.broadcast_to(angles(time, widths[0])[..., None, None, :], (*shape, widths[0] // 2)),
    jnp.broadcast_to(angles(jnp.arange(height), widths[1])[:, None], (*shape, widths[1] // 2)),
    jnp.broadcast_to(angles(jnp.arange(width), widths[2])[None], (*shape, widths[2] // 2)),
  ]
  joined = jnp.concatenate(parts, axis=-1)
  return joined.reshape(*time.shape[:-1], -1, head // 2)


def rotate(x: Array, angle: Array) -> Array:
  """Rotates adjacent channel pairs of x [B, S, K, head] by angle [B or 1, S, head / 2], in fp32."""
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)
