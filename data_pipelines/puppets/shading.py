"""Light, line and paper: from the nearest surface of each sample to a colour, in any style.

A style is a point in a space of looks (cel light, ink, specular, rim, paper, clay ...), so one
compiled function draws them all.
"""

from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from data_pipelines.puppets.geometry import Vector, mix, mix3, ramp

KEY = (-0.46, 0.56, 0.69)
FILL = (0.75, 0.1, 0.65)
HALF = (-0.25, 0.305, 0.919)  # between KEY and the viewer
PAPER = (0.955, 0.935, 0.89)
PENCIL = (0.2, 0.19, 0.21)


class Surface(NamedTuple):
  """What the camera sees at each sample [S, S]; the normal is in the world, `edge` a distance."""

  normal: Vector
  albedo: Vector
  unlit: Array
  skin: Array
  hair: Array
  edge: Array


def _dot(a: Vector, b: tuple[float, float, float]) -> Array:
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _triangle(x: Array) -> Array:
  """A triangle wave of period 1 between 0 and 1."""
  return 2.0 * jnp.abs(x - jnp.floor(x) - 0.5)


def background(x: Array, y: Array, s: SimpleNamespace) -> Vector:
  """The wall behind the puppet."""
  base = (s.background_r, s.background_g, s.background_b)
  height = 0.5 + 0.5 * y
  r2 = x * x + (y - 0.1) * (y - 0.1)
  vignette = 1.06 - 0.3 * r2
  photo = tuple(c * vignette for c in base)
  band = ramp(0.46, 0.54, _triangle(0.9 * (x + 0.6 * y) + 0.1))
  flat = tuple(mix(0.5 + 0.55 * c, 0.3 + 0.72 * c, band) for c in base)
  lamp = 0.16 + 0.2 * jnp.maximum(1.0 - 0.8 * r2, 0.0)
  glow = tuple(lamp + c * (0.25 + 0.5 * height) for c in base)
  plain = tuple(0.78 * c + 0.2 * (1.0 - 0.3 * (1.0 - height)) for c in base)
  colour = mix3(plain, photo, s.look_vignette)
  colour = mix3(colour, flat, s.look_bands)
  colour = mix3(colour, glow, s.look_glow)
  strokes = 0.05 * _triangle(4.0 * (x - 0.8 * y)) * (0.4 + 0.6 * height)
  return mix3(colour, tuple(p - strokes for p in PAPER), s.look_paper)


def shade(surface: Surface, x: Array, y: Array, s: SimpleNamespace) -> Vector:
  """The colour of a surface in the light of its style: RGB."""
  n, unlit = surface.normal, surface.unlit
  bumps = 0.17 * s.look_clay
  n = (
    n[0] + bumps * (_triangle(2.3 * x + 1.1 * y) - _triangle(3.7 * y - 0.9 * x)),
    n[1] + bumps * (_triangle(2.9 * y + 0.7 * x) - _triangle(1.9 * x)),
    n[2],
  )
  half = 0.5 + 0.5 * _dot(n, KEY)
  fill = jnp.maximum(_dot(n, FILL), 0.0)
  soft_light = 0.4 + 0.56 * half * half + 0.09 * fill
  cel = 0.7 + 0.32 * ramp(0.5, 0.55, half)
  light = mix(soft_light, cel, s.look_cel)
  light = mix(light, 1.0, jnp.maximum(unlit, 0.55 * s.look_paper))
  cool = 1.0 - jnp.clip(half, 0.0, 1.0)
  # Shadows lean to blue, lit parts to warm; skin lets red through where light fades.
  glow = s.look_subsurface * surface.skin * 4.0 * half * (1.0 - half) * (1.0 - unlit)
  tint = (
    light * (1.03 - 0.1 * cool) + 0.085 * glow,
    light * (1.0 - 0.05 * cool) + 0.012 * glow,
    light * (0.97 + 0.07 * cool),
  )
  # Clay is dyed: every colour leans to that of the earth.
  earth = 0.4 * s.look_clay * (1.0 - unlit)
  dyed = mix3(surface.albedo, (0.72, 0.47, 0.34), earth)
  colour = tuple(a * t for a, t in zip(dyed, tint, strict=True))

  sharp = jnp.maximum(_dot(n, HALF), 0.0)
  sharp = jnp.square(jnp.square(jnp.square(jnp.square(sharp))))
  sharp = sharp * sharp
  shine = (
    s.look_specular * sharp * (0.6 - 0.25 * surface.skin + 0.2 * surface.hair) * (1.0 - 0.5 * unlit)
  )
  # Cel hair carries one bright band instead of a highlight.
  ring = ramp(0.3, 0.36, n[1]) * (1.0 - ramp(0.46, 0.52, n[1])) * ramp(0.45, 0.7, n[2])
  shine = shine + 0.22 * s.look_cel * (1.0 - s.look_paper) * surface.hair * ring
  away = 1.0 - jnp.maximum(n[2], 0.0)
  rim = s.look_rim * away * away * jnp.maximum(0.35 + 0.65 * n[0] + 0.35 * n[1], 0.0)
  colour = tuple(c + shine + k * rim for c, k in zip(colour, (0.4, 0.5, 0.6), strict=True))

  grey = _dot(colour, (0.3, 0.59, 0.11))
  colour = tuple(grey + s.look_saturation * (c - grey) for c in colour)
  colour = mix3(colour, _drawn(colour, grey, light, x, y), s.look_paper)
  ink = s.look_ink * jnp.clip(1.5 - surface.edge / s.look_ink_width, 0.0, 1.0)
  line = tuple(mix(0.22 * a, p, s.look_paper) for a, p in zip(surface.albedo, PENCIL, strict=True))
  return mix3(colour, line, ink)


def _drawn(colour: Vector, grey: Array, light: Array, x: Array, y: Array) -> Vector:
  """Pencil on paper: lifted tones, hatched where it is dark."""
  dark = jnp.clip(1.0 - grey, 0.0, 1.0)
  stroke = _triangle(5.0 * (x + y)) - 0.5
  cross = _triangle(4.5 * (x - 0.7 * y)) - 0.5
  shadow = jnp.clip(2.0 - 2.0 * light, 0.0, 1.0)
  hatch = stroke * (0.05 + 0.4 * shadow) * dark + cross * 0.3 * jnp.maximum(dark - 0.5, 0.0)
  return tuple(p * (0.18 + 0.86 * c) + hatch for p, c in zip(PAPER, colour, strict=True))
