"""Ellipsoids under parallel rays: rotations, tables of quadrics, casting and blending by depth.

World axes: x image right, y up, z to the viewer; the picture spans -1..1 in x and y. Shapes are
those of one frame: N solids, S x S samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Vector = tuple[Array, Array, Array]


class Quadrics(NamedTuple):
  """N ellipsoids of one frame, ready to be cast.

  inside [N, 3, 3]: symmetric form in (x, y, 1), positive inside the silhouette; its root is half
  the chord. middle [N, 3]: depth of the chord's middle, negated, affine in (x, y, 1).
  normal [N, 3, 4]: world normal (about unit length) as an affine map of (x, y, z, 1).
  """

  inside: Array
  middle: Array
  normal: Array


def ramp(low: float | Array, high: float | Array, x: Array) -> Array:
  """Smooth step from 0 at `low` to 1 at `high`."""
  t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
  return t * t * (3.0 - 2.0 * t)


def mix(a: Array, b: Array, t: Array) -> Array:
  return a + (b - a) * t


def mix3(a: Vector, b: Vector, t: Array) -> Vector:
  return tuple(mix(x, y, t) for x, y in zip(a, b, strict=True))


def rotation(yaw: Array, pitch: Array, roll: Array) -> Array:
  """Matrix [3, 3] from local to world: pitch first, then yaw, then roll in the image plane."""
  cy, sy = jnp.cos(yaw), jnp.sin(yaw)
  cp, sp = jnp.cos(pitch), jnp.sin(pitch)
  cr, sr = jnp.cos(roll), jnp.sin(roll)
  one, nil = jnp.ones_like(cy), jnp.zeros_like(cy)
  turn = jnp.stack([cy, nil, sy, nil, one, nil, -sy, nil, cy]).reshape(3, 3)
  nod = jnp.stack([one, nil, nil, nil, cp, sp, nil, -sp, cp]).reshape(3, 3)
  tilt = jnp.stack([cr, sr, nil, -sr, cr, nil, nil, nil, one]).reshape(3, 3)
  return _matmul(_matmul(tilt, turn), nod)


def quadrics(centre: Array, radii: Array, rotations: Array, origins: Array) -> Quadrics:
  """Tables of N ellipsoids.

  Args:
    centre, radii: [N, 3] in the local frame of each.
    rotations: [N, 3, 3] local to world.
    origins: [N, 3] of the local frames, in the world.
  """
  inverse = 1.0 / radii
  to_unit = rotations.swapaxes(1, 2) * inverse[:, :, None]
  shift = -(to_unit * origins[:, None, :]).sum(-1) - centre * inverse
  plane = jnp.concatenate([to_unit[:, :, :2], shift[:, :, None]], axis=2)
  depth = to_unit[:, :, 2]
  scale = 1.0 / jnp.square(depth).sum(-1)
  middle = (depth[:, :, None] * plane).sum(1) * scale[:, None]
  form = (plane[:, :, :, None] * plane[:, :, None, :]).sum(1)
  form = form.at[:, 2, 2].add(-1.0)
  inside = middle[:, :, None] * middle[:, None, :] - form * scale[:, None, None]
  affine = jnp.concatenate([to_unit, shift[:, :, None]], axis=2) * inverse[:, :, None]
  normal = (rotations[:, :, :, None] * affine[:, None, :, :]).sum(2)
  return Quadrics(inside, middle, normal * jnp.cbrt(radii.prod(-1))[:, None, None])


def cast(table: Quadrics, x: Array, y: Array) -> tuple[list[Array], list[Array]]:
  """Depth of each front surface and distance inside each silhouette: N arrays [S, S] of both.

  Outside a silhouette the depth continues with that of the chord's middle, so it has no jumps.
  """
  depths, edges = [], []
  for k, m in zip(table.inside, table.middle, strict=True):
    slope_x = k[0, 0] * x + k[0, 1] * y + k[0, 2]
    slope_y = k[0, 1] * x + k[1, 1] * y + k[1, 2]
    form = slope_x * x + slope_y * y + k[0, 2] * x + k[1, 2] * y + k[2, 2]
    depths.append(jnp.sqrt(jnp.maximum(form, 0.0)) - (m[0] * x + m[1] * y + m[2]))
    # The gradient of the form is twice the slope: the ratio is the distance, exact at the
    # silhouette.
    steep = jax.lax.rsqrt(slope_x * slope_x + slope_y * slope_y + 1e-6)
    edges.append(jnp.minimum(0.5 * form * steep, 0.3))
  return depths, edges


def draw(
  depth: Array,
  z: Sequence[Array],
  edge: Sequence[Array],
  shown: Array,
  softness: Array,
  step: float,
) -> tuple[Array, list[Array]]:
  """Draws surfaces in order over `depth`: the new depth, and the part each takes when it is drawn.

  A silhouette fades over `step` (one sample); `shown` scales the coverage; `softness` is the depth
  over which a nearer surface takes over. So pixels move smoothly with the pose.
  """
  parts = []
  for z_i, edge_i, shown_i, soft_i in zip(z, edge, shown, softness, strict=True):
    cover = jnp.clip(edge_i / step + 0.5, 0.0, 1.0) * shown_i
    part = cover * jnp.clip((z_i - depth) / soft_i + 0.5, 0.0, 1.0)
    depth = mix(depth, z_i, part)
    parts.append(part)
  return depth, parts


def peel(left: Array, parts: Sequence[Array]) -> tuple[Array, list[Array]]:
  """From the last surface drawn to the first: what each keeps, and what is `left` below."""
  kept = []
  for part in reversed(parts):
    kept.append(left * part)
    left = left * (1.0 - part)
  return left, kept[::-1]


def _matmul(a: Array, b: Array) -> Array:
  return (a[:, :, None] * b[None]).sum(1)
