"""The solids of a puppet: torso and neck, head, nose and ears, hair, and what hair and turns hide.

A solid is an ellipsoid in the frame of the torso or of the head; hair has a window for the face
and one for each ear, ear rings have a hole.
"""

from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from data_pipelines.puppets.geometry import Vector, mix, ramp, rotation

SKULL = (0.53, 0.55, 0.54)
SKULL_Y = 0.1
FACE_HEIGHT = 0.62
NECK_PIVOT = -0.5
HEAD_Y = 0.05
EAR_Y, EAR_Z = -0.03, -0.17
TORSO_PARTS = ("neck", "torso")
FACE_PARTS = ("skull", "jaw", "muzzle", "nose")
SKIN_PARTS = ("neck", *FACE_PARTS, "left ear", "right ear")
HAIR_PARTS = (
  "inner hair",
  "left lock",
  "right lock",
  "back hair",
  "left tuft",
  "right tuft",
  "cap",
  "bun",
)
PARTS = (
  *TORSO_PARTS,
  *FACE_PARTS,
  *("left ear", "right ear", "left ring", "right ring"),
  *HAIR_PARTS[:-1],
  *("bun band", "bun"),
)
PART = {name: i for i, name in enumerate(PARTS)}


class Solid(NamedTuple):
  """An ellipsoid and its colour; `shown` scales its coverage, `softness` see `geometry.draw`."""

  centre: Vector
  radii: Vector
  albedo: Vector
  shown: float | Array = 1.0
  softness: float = 0.03


class Figure(NamedTuple):
  """All solids of one frame as arrays: [N, 3], [N, 3], [N, 3], [N], [N]."""

  centre: Array
  radii: Array
  albedo: Array
  shown: Array
  softness: Array


def frame_state(p: SimpleNamespace, pose: SimpleNamespace) -> dict[str, Array]:
  """What a frame needs beside parameters and pose: sizes, axes, openings, fades."""
  smiling = ramp(0.35, 0.8, pose.smile) * 0.24
  torso_yaw = pose.yaw * (0.25 + 0.75 * ramp(0.6, 1.3, jnp.abs(pose.yaw)))
  head = rotation(pose.yaw, pose.pitch, pose.roll)
  shift = jnp.stack([0.12 * pose.lean_x, 0.08 * pose.lean_y, jnp.zeros_like(pose.yaw)])
  flat = jnp.array([1.0, 1.0, 0.0])
  centre = shift + jnp.array([0.0, NECK_PIVOT, 0.0]) + head[:, 1] * (HEAD_Y - NECK_PIVOT) * flat
  zero = jnp.zeros_like(pose.yaw)
  return {
    "head": head,
    "torso": rotation(torso_yaw, zero, zero),
    "head_at": centre,
    "torso_at": shift,
    "radius_x": SKULL[0] * p.face_width,
    "radius_y": SKULL[1] * p.face_height,
    "radius_z": SKULL[2] * p.face_width,
    "opening": pose.mouth_open + smiling * (1.0 - pose.mouth_open),
    "smile_up": jnp.maximum(pose.smile, 0.0),
    # Exactly zero within 0.35 rad of the front, one beyond 0.68 rad.
    "turned": ramp(0.061, 0.222, 1.0 - jnp.cos(pose.yaw)),
    "turned_left": ramp(0.35, 0.64, jnp.sin(-pose.yaw)) * ramp(-0.95, -0.6, jnp.cos(pose.yaw)),
    "brow_lines": p.forehead_wrinkles * ramp(0.3, 0.6, pose.brow),
    "nose_lines": p.nose_wrinkles * ramp(0.2, 0.5, pose.nose_wrinkle),
  }


def figure(s: SimpleNamespace) -> Figure:
  """The solids in the order of PARTS; `s` holds parameters, pose and frame state."""
  solids = {**_body(s), **_head(s), **_hair(s), **_hidden(s)}
  ordered = [solids[name] for name in PARTS]
  columns = zip(*ordered, strict=True)
  return Figure(*(jnp.array(column, jnp.float32) for column in columns))


def local_point(s: SimpleNamespace, frame: str, x: Array, y: Array, z: Array) -> Vector:
  """A world point in the frame of the "head" or "torso"."""
  matrix, at = getattr(s, frame), getattr(s, f"{frame}_at")
  dx, dy, dz = x - at[0], y - at[1], z - at[2]
  return tuple(matrix[0, i] * dx + matrix[1, i] * dy + matrix[2, i] * dz for i in range(3))


def hairline(u: Array, s: SimpleNamespace) -> Array:
  """Height at which hair begins, in the stereographic picture of the unit head."""
  bow = -0.22 * u * u
  sweep = 0.12 * s.fringe_slope * (u - 0.35 * s.fringe_slope)
  peak = -0.1 * s.fringe_peak * jnp.maximum(1.0 - jnp.abs(u) / 0.3, 0.0)
  wave = jnp.abs(u * 2.0 - jnp.round(u * 2.0)) - 0.25
  spikes = jnp.maximum(s.fringe_scallop, 0.85 * s.look_spikes)
  return 0.9 + s.hairline + bow + sweep + peak - 0.26 * spikes * wave


def openings(s: SimpleNamespace, x: Array, y: Array, depths: list[Array]) -> dict[str, Array]:
  """Signed distance [S, S] inside the holes of solids that have some; `depths` as cast."""

  def at(name: str) -> Vector:
    return local_point(s, "head", x, y, depths[PART[name]])

  q = at("cap")
  grow = 0.07 + s.hair_volume
  n = (q[0] / (s.radius_x + grow), (q[1] - SKULL_Y) / (s.radius_y + grow))
  n = (*n, (q[2] + 0.03) / (s.radius_z + grow))
  spread = 2.0 / (1.0 + jnp.maximum(n[2], -0.6))
  u, v = n[0] * spread, n[1] * spread
  window = jnp.minimum(hairline(u, s) - v, jnp.minimum(1.32 - jnp.abs(u), n[2] + 0.25))
  ear = 1.0 - jnp.sqrt(
    jnp.square((q[1] - EAR_Y + 0.07) / 0.23) + jnp.square((q[2] - EAR_Z) / 0.15) + 1e-9
  )
  bare = jnp.maximum(0.6 * window, 0.15 * ear)
  holes = {"cap": bare}
  for side, name in ((-1.0, "left ring"), (1.0, "right ring")):
    q = at(name)
    centre = _ring_centre(s, side)
    hole = jnp.square(q[1] - centre[1]) + jnp.square(q[2] - centre[2])
    holes[name] = 0.042 - jnp.sqrt(hole + 1e-9)
  return holes


def clothes_pattern(
  s: SimpleNamespace, x: Array, y: Array, z: Array, soft: float
) -> tuple[Array, Vector]:
  """Where the second colour of the clothes shows [S, S], and that colour."""
  u, v, depth = local_point(s, "torso", x, y, z)
  front = ramp(0.0, 0.1, depth)
  wave = jnp.abs(v * 6.2 - jnp.round(v * 6.2)) / 6.2
  row = jnp.abs(v * 5.0 + 0.35 - jnp.round(v * 5.0 + 0.35)) / 5.0
  distances = (
    (0.04 - wave, s.stripes),
    (0.05 - jnp.abs(jnp.abs(u) - 0.55 * (v + 1.14)), s.lapels * front),
    (0.035 - jnp.sqrt(u * u + row * row + 1e-9), s.buttons * front),
  )
  shapes = [jnp.clip(d / soft + 0.5, 0.0, 1.0) * amount for d, amount in distances]
  return shapes[0] + shapes[1] + shapes[2], _colours(s, "accent")[0]


def _body(s: SimpleNamespace) -> dict[str, Solid]:
  skin, clothes = _colours(s, "skin", "clothes")
  return {
    "neck": Solid((0.0, -0.62, -0.06), (0.19, 0.5, 0.18), skin),
    "torso": Solid((0.0, -1.36, -0.04), (0.82, 0.66, 0.42), clothes),
  }


def _head(s: SimpleNamespace) -> dict[str, Solid]:
  (skin,) = _colours(s, "skin")
  drop = 0.06 * s.opening
  narrow = 0.93 - 0.7 * s.jaw_taper - s.look_jaw + s.cheeks
  size = s.nose_size * s.look_nose
  lift = 0.03 * s.nose_wrinkle
  ear_skin = tuple(0.94 * c for c in skin)
  solids = {
    "skull": Solid((0.0, SKULL_Y, 0.0), (s.radius_x, s.radius_y, s.radius_z), skin),
    "jaw": Solid(
      (0.0, -0.17 - 0.5 * drop, 0.04),
      (s.radius_x * narrow, 0.44 * s.face_height + 0.5 * drop, 0.9 * s.radius_z),
      skin,
      softness=0.12,
    ),
    "muzzle": Solid(
      (0.0, -0.34 - drop, 0.32),
      (0.26, 0.22 + drop, 0.23),
      skin,
      softness=0.14,
    ),
    "nose": Solid(
      (0.0, -0.11 + lift, 0.48),
      (0.072 * size + 0.015 * s.nose_wrinkle, 0.12 * size, 0.05 + 0.065 * size),
      skin,
      softness=0.06,
    ),
  }
  for side, name in ((-1.0, "left ear"), (1.0, "right ear")):
    solids[name] = Solid((side * _ear_x(s), EAR_Y, EAR_Z), (0.06, 0.14, 0.1), ear_skin)
  return solids


def _hair(s: SimpleNamespace) -> dict[str, Solid]:
  (hair,) = _colours(s, "hair")
  grow = 0.07 + s.hair_volume
  long = s.hair_length
  fall = mix(0.0, 0.27, long)

  def shaded(k: float) -> Vector:
    return tuple(k * c for c in hair)

  inner = (s.radius_x + 0.85 * grow, s.radius_y + 0.88 * grow, 0.4)
  solids = {
    "inner hair": Solid((0.0, SKULL_Y - 0.02, -0.04), inner, shaded(0.72)),
    "back hair": Solid(
      (0.0, mix(-0.2, -0.5, long), -0.22),
      (s.radius_x + mix(-0.03, 0.08, long), mix(0.34, 0.6, long), 0.36 + 0.5 * s.hair_volume),
      shaded(0.95),
      softness=0.12,
    ),
    "cap": Solid(
      (0.0, SKULL_Y, -0.03),
      (s.radius_x + grow, s.radius_y + grow, s.radius_z + grow),
      hair,
    ),
  }
  for side, name in ((-1.0, "left lock"), (1.0, "right lock")):
    solids[name] = Solid(
      (side * (s.radius_x + 0.01 + 0.4 * s.hair_volume), 0.04 - fall, 0.09),
      (0.095, 0.32 + 0.85 * fall, 0.13),
      hair,
      softness=0.06,
    )
  for name, x, height in (("left tuft", -0.16, 0.13), ("right tuft", 0.17, 0.09)):
    solids[name] = Solid(
      (x, SKULL_Y + s.radius_y - 0.02 + s.hair_volume, 0.1),
      (0.2, 0.06 + height * s.tuft, 0.2),
      hair,
      softness=0.1,
    )
  return solids


def _hidden(s: SimpleNamespace) -> dict[str, Solid]:
  """Ear rings, and a bun with its band: only a turned head shows them."""
  hair, accent = _colours(s, "hair", "accent")
  light = ramp(0.45, 0.65, 0.5 * s.hair_r + 0.5 * s.hair_g)
  gold = (mix(1.0, 0.1, light), mix(0.8, 0.35, light), mix(0.12, 0.9, light))
  back = s.radius_z + s.hair_volume
  bun_hair = tuple(0.9 * c + 0.04 for c in hair)
  bun = {"shown": s.hair_bun * s.turned}
  ring = {"shown": s.ear_ring * s.turned}
  hoop = (0.03, 0.13, 0.13)
  return {
    "left ring": Solid(_ring_centre(s, -1.0), hoop, gold, **ring),
    "right ring": Solid(_ring_centre(s, 1.0), hoop, gold, **ring),
    "bun band": Solid((0.0, 0.27, -back - 0.07), (0.26, 0.26, 0.09), accent, **bun),
    "bun": Solid((0.0, 0.28, -back - 0.16), (0.205, 0.205, 0.18), bun_hair, **bun),
  }


def _ring_centre(s: SimpleNamespace, side: float) -> Vector:
  return side * (_ear_x(s) + 0.04), EAR_Y - 0.23, EAR_Z


def _ear_x(s: SimpleNamespace) -> Array:
  return s.radius_x + 0.02 + 0.85 * s.hair_volume


def _colours(s: SimpleNamespace, *names: str) -> tuple[Vector, ...]:
  return tuple(tuple(getattr(s, f"{name}_{c}") for c in "rgb") for name in names)
