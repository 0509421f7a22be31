"""The painted face: eyes, brows, mouth, teeth and marks, drawn on the head's sphere of directions.

Coordinates (u, v) are the stereographic image of the direction from the head's centre (u to the
image right when frontal, v up, in world units at the middle of the face), so profiles need no
special case.
"""

from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from data_pipelines.puppets.geometry import Vector, mix, ramp

EYE_X, EYE_Y = 0.245, 0.03
MOUTH_Y = -0.36
TOOTH = 0.068


class Decal(NamedTuple):
  """One shape: its mask [S, S], its colour and how far it ignores light (eyes and teeth do)."""

  mask: Array
  colour: Vector
  unlit: float = 0.0


class Eye(NamedTuple):
  """Where one eye is and how far it is open; arrays over the samples."""

  x: Array
  y: Array
  wide: Array
  upper: Array
  lid: Array
  lower: Array
  closed: Array


class Mouth(NamedTuple):
  """The curves of the lips relative to the mouth's centre; arrays over the samples."""

  y: Array
  e: Array
  half: Array
  curve: Array
  top: Array
  bottom: Array
  height: Array


def decals(u: Array, v: Array, s: SimpleNamespace, soft: float) -> list[Decal]:
  """Everything drawn on the skin, bottom first; `soft` is the width of an edge in world units."""
  return [
    *_marks(u, v, s, soft),
    *_eyes(u, v, s, soft),
    *_brows(u, v, s, soft),
    *_mouth(u, v, s, soft),
  ]


def _fill(distance: Array, soft: float) -> Array:
  """Coverage from a signed distance inside a shape."""
  return jnp.clip(distance / soft + 0.5, 0.0, 1.0)


def _disc(x: Array, y: Array, radius: float | Array) -> Array:
  """Signed distance inside a circle."""
  return radius - jnp.sqrt(x * x + y * y + 1e-9)


def _skin(s: SimpleNamespace, r: float, g: float, b: float) -> Vector:
  return r * s.skin_r, g * s.skin_g, b * s.skin_b


def _marks(u: Array, v: Array, s: SimpleNamespace, soft: float) -> list[Decal]:
  """Blush, birthmark, wrinkles and nostrils."""
  side = jnp.abs(u)
  x, y = (side - 0.37) / 0.17, (v + 0.17 - 0.03 * s.smile_up) / 0.13
  blush = jnp.maximum(1.0 - x * x - y * y, 0.0) * (0.5 * s.blush + 0.15 * s.smile_up)
  rosy = (0.93, 0.42 * s.skin_g + 0.1, 0.42 * s.skin_b + 0.12)
  # A port-wine mark on the cheek at image right, darker than light skin and lighter than dark skin.
  light = jnp.clip((s.skin_r + s.skin_g + s.skin_b) * 0.75 - 0.75, 0.0, 1.0)
  wine = (mix(0.85, 0.45, light), mix(0.42, 0.07, light), mix(0.5, 0.16, light))
  x, y = u - 0.52, v + 0.14
  mark = _fill(_disc(x * 1.15, y, 0.105 + 0.5 * x * y), soft) * s.turned_left * s.birthmark
  crease = _skin(s, 0.5, 0.4, 0.4)
  bend = 0.12 * u * u
  lines = jnp.minimum(jnp.abs(v - 0.42 + bend), jnp.abs(v - 0.505 + bend))
  lines = _fill(0.018 - lines, soft) * (1.0 - ramp(0.24, 0.34, side)) * s.brow_lines
  ridge = v - 0.5 * side
  pleats = jnp.minimum(
    jnp.abs(ridge - 0.1), jnp.minimum(jnp.abs(ridge - 0.02), jnp.abs(ridge + 0.06))
  )
  pleats = _fill(0.018 - pleats, soft) * (1.0 - ramp(0.1, 0.14, side)) * s.nose_lines
  x = side - 0.048 * s.nose_size - 0.014 * s.nose_wrinkle
  nostril = _fill(_disc(x, 1.5 * (v + 0.205 - 0.035 * s.nose_wrinkle), 0.02), soft)
  # The fold from nostril to mouth corner deepens with smiles and with a wrinkled nose.
  fold = jnp.abs(side - 0.19 + 0.5 * (v + 0.26))
  fold = _fill(0.011 - fold, soft) * ramp(-0.36, -0.3, v) * (1.0 - ramp(-0.24, -0.17, v))
  fold = fold * jnp.minimum(0.4 * s.smile_up + 0.55 * s.nose_wrinkle, 1.0)
  return [
    Decal(blush, rosy),
    Decal(mark, wine),
    Decal(0.7 * fold, crease),
    Decal(0.8 * nostril, crease),
    Decal(lines, crease),
    Decal(pleats, crease),
  ]


def _eye(u: Array, v: Array, s: SimpleNamespace) -> Eye:
  wide = 0.146 * s.eye_size * s.look_eye_wide
  tall = 0.098 * s.eye_size * s.look_eye_tall * (1.0 + 0.15 * jnp.maximum(s.brow, 0.0))
  low = 0.09 * s.eye_size * s.look_eye_tall * (1.0 - 0.25 * s.smile_up - 0.35 * s.nose_wrinkle)
  x = jnp.abs(u) - EYE_X - s.eye_spacing
  y = v - EYE_Y - s.eye_tilt * x
  e2 = jnp.square(x / wide)
  arc = 0.5 * (1.0 - e2) + 0.5 * (1.0 - e2 * e2)
  closed = jnp.clip(s.blink + 0.2 * s.frown * jnp.maximum(-s.brow, 0.0), 0.0, 1.0)
  lower = -low * arc
  return Eye(x, y, wide, tall * arc, mix(tall * arc, lower + 0.012, closed), lower, closed)


def _eyes(u: Array, v: Array, s: SimpleNamespace, soft: float) -> list[Decal]:
  eye = _eye(u, v, s)
  opening = _fill(0.9 * jnp.minimum(eye.lid - eye.y, eye.y - eye.lower), soft)
  lid = _fill(jnp.minimum(eye.upper + 0.02 - eye.y, eye.y - eye.lid), soft)
  shade = 0.25 * ramp(-0.07, 0.0, eye.y - eye.lid) * opening
  sign = jnp.where(u > 0.0, 1.0, -1.0)
  radius = 0.084 * s.eye_size * s.look_iris
  gx = sign * eye.x - 0.07 * s.gaze_x
  gy = eye.y - 0.058 * s.gaze_y - 0.008
  stretch = gy / (0.75 + 0.25 * s.look_eye_tall)
  distance = jnp.sqrt(gx * gx + stretch * stretch + 1e-9)
  iris = _fill(radius - distance, soft) * opening
  spark = _disc(gx + 0.33 * radius, gy - 0.42 * radius, 0.3 * radius * s.look_highlight)
  glint = _disc(gx - 0.36 * radius, gy + 0.45 * radius, 0.17 * radius * s.look_highlight)
  along = _fill(1.1 * eye.wide - jnp.abs(eye.x), soft)
  thick = 0.019 * s.look_lash
  lash = _fill(thick - jnp.abs(eye.y - eye.lid - 0.5 * thick), soft) * along
  under = _fill(0.008 - jnp.abs(eye.y - eye.lower), soft) * along
  colour = (s.eye_r, s.eye_g, s.eye_b)
  return [
    Decal(0.8 * lid * (1.0 - opening), _skin(s, 0.82, 0.76, 0.76)),
    Decal(opening, (0.98, 0.98, 1.0), 0.65),
    Decal(shade, (0.35, 0.33, 0.45), 0.65),
    Decal(iris, colour, 0.7),
    Decal(iris * ramp(radius - 0.04, radius, distance) * 0.65, (0.06, 0.05, 0.1), 0.7),
    Decal(iris * jnp.clip(-0.1 - 6.0 * gy, 0.0, 0.45), (1.0, 1.0, 1.0), 0.7),
    Decal(_fill(0.47 * radius - distance, soft) * opening, (0.05, 0.04, 0.06), 0.7),
    Decal(_fill(spark, soft) * opening, (1.0, 1.0, 1.0), 1.0),
    Decal(0.6 * _fill(glint, soft) * opening, (1.0, 1.0, 1.0), 1.0),
    Decal(0.45 * under, (0.2, 0.1, 0.1)),
    Decal(lash, (0.1, 0.06, 0.08)),
  ]


def _brows(u: Array, v: Array, s: SimpleNamespace, soft: float) -> list[Decal]:
  t = (jnp.abs(u) - EYE_X - 0.015 + 0.03 * s.frown) / 0.165
  base = 0.215 + 0.06 * (s.look_eye_tall - 1.0) + 0.095 * s.brow - 0.02 * s.nose_wrinkle
  # A frown pulls the inner end down when brows are low and up when they are raised (sadness, fear).
  slope = s.frown * mix(0.065, -0.05, ramp(-0.3, 0.35, s.brow))
  y = v - base + 0.035 * s.brow_arch * t * t - slope * t
  thick = 0.027 * s.brow_thickness * s.look_brow * (1.0 - 0.35 * jnp.clip(t, -1.0, 1.0))
  shape = _fill(thick - jnp.abs(y), soft) * _fill((1.0 - jnp.abs(t)) * 0.165, soft)
  return [Decal(shape, tuple(0.55 * getattr(s, f"hair_{c}") for c in "rgb"))]


def _lips(u: Array, v: Array, s: SimpleNamespace) -> Mouth:
  pursed = jnp.maximum(-s.mouth_width, 0.0)
  half = 1.0 + 0.36 * s.mouth_width - 0.12 * pursed + 0.2 * s.smile_up
  half = 0.205 * s.mouth_size * half
  height = 0.32 * s.opening * s.mouth_size
  y = v - MOUTH_Y - 0.025 * s.nose_wrinkle
  e2 = jnp.minimum(jnp.square(u / half), 1.6)
  curve = s.smile * (0.075 * e2 - 0.035)
  arc = 0.4 * (1.0 - e2) + 0.6 * (1.0 - e2 * e2)
  top = curve + (0.28 * height + 0.02 * s.nose_wrinkle * s.opening) * arc
  return Mouth(y, u / half, half, curve, top, curve - 0.72 * height * arc, height)


def _mouth(u: Array, v: Array, s: SimpleNamespace, soft: float) -> list[Decal]:
  m = _lips(u, v, s)
  pursed = jnp.maximum(-s.mouth_width, 0.0)
  hollow = 0.85 * jnp.minimum(m.top - m.y, m.y - m.bottom)
  ends = _fill((1.0 - jnp.abs(m.e)) * m.half, soft)
  opening = _fill(hollow, soft) * ends * ramp(0.0, 0.03, s.opening)
  full = 0.043 * s.lip_fullness * s.look_lip * (1.0 + 0.45 * pursed - 0.25 * s.smile_up)
  bow = 1.0 - 0.3 * jnp.maximum(1.0 - jnp.square(u / 0.05), 0.0)
  thin = jnp.sqrt(jnp.maximum(1.08 - m.e * m.e, 0.0))
  lips = jnp.minimum(m.top + full * bow * thin - m.y, m.y - m.bottom + 1.25 * full * thin)
  lips = _fill(lips, soft) * _fill((1.06 - jnp.abs(m.e)) * m.half, soft)
  below = jnp.clip(0.5 + (m.curve - m.y) / 0.04, 0.0, 1.0)
  seam = _fill(0.012 - jnp.abs(m.y - m.curve), soft) * _fill((1.04 - jnp.abs(m.e)) * m.half, soft)
  seam = seam * (1.0 - ramp(0.02, 0.12, s.opening))
  tongue = _disc(0.6 * u, m.y - m.bottom - 0.02 * s.opening, 0.085 * ramp(0.15, 0.8, s.opening))
  lip = (s.lips_r, s.lips_g, s.lips_b)
  return [
    Decal(lips, tuple(0.84 * c for c in lip)),
    Decal(lips * below, lip),
    Decal(0.85 * seam, (0.28, 0.06, 0.08)),
    Decal(opening, (0.27, 0.04, 0.07), 0.5),
    Decal(_fill(tongue, soft) * opening, (0.84, 0.34, 0.37), 0.3),
    *_teeth(u, m, opening, s, soft),
  ]


def _teeth(u: Array, m: Mouth, opening: Array, s: SimpleNamespace, soft: float) -> list[Decal]:
  """Upper teeth hang from the skull, lower ones go with the jaw."""
  yellow = s.tooth_colour
  enamel = (mix(1.0, 0.86, yellow), mix(1.0, 0.77, yellow), mix(0.97, 0.42, yellow))
  side = jnp.abs(u)
  gap = 0.023 * s.tooth_gap
  edge = -0.048 + (0.04 + 0.05 * s.smile_up) * jnp.square(u / 0.2)
  row = _fill(m.y - edge, soft) * _fill(0.2 - side, soft) * opening
  spacing = (side - gap) / TOOTH
  join = jnp.abs(spacing - jnp.round(spacing)) * TOOTH
  first = gap + TOOTH
  gold = _fill(jnp.minimum(u - first + 0.008, first + TOOTH + 0.008 - u), soft)
  low = -0.23 * s.opening + 0.035 + 0.4 * u * u
  lower = _fill(jnp.minimum(low - m.y, 0.13 - side), soft) * opening * (1.0 - row)
  return [
    Decal(lower * ramp(0.5, 0.8, s.opening), tuple(0.86 * c for c in enamel), 0.5),
    Decal(row, enamel, 0.65),
    Decal(0.3 * _fill(0.004 - join, soft) * row, (0.4, 0.25, 0.2), 0.5),
    Decal(row * gold * s.gold_tooth, (1.0, 0.5, 0.0), 0.65),
    Decal(row * _fill(gap - side, soft) * s.tooth_gap, (0.2, 0.02, 0.05), 0.5),
  ]
