"""Draws a puppet: parameters and pose track in, pictures out, the same pixels for the same input.

One compiled function per picture size serves every character and style; tracks are cut into chunks of fixed length.
"""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from data_pipelines import clip
from data_pipelines.puppets.character import PARAM_FIELDS
from data_pipelines.puppets.expressions import expression_pose
from data_pipelines.puppets.face import decals
from data_pipelines.puppets.figure import (
  FACE_HEIGHT,
  PART,
  PARTS,
  TORSO_PARTS,
  Figure,
  clothes_pattern,
  figure,
  frame_state,
  hairline,
  local_point,
  openings,
)
from data_pipelines.puppets.geometry import Quadrics, blend_by_depth, cast, mix, mix3, quadrics, ramp
from data_pipelines.puppets.pose import POSE_FIELDS, make_pose
from data_pipelines.puppets.shading import Surface, background, shade

CHUNK = 4
VIEW_YAW = {"front": 0.0, "left": -1.4, "right": 1.4, "back": float(np.pi)}


def render(
  params: np.ndarray, pose: np.ndarray, size: int = 64, supersample: int = 2
) -> np.ndarray:
  """Draws a pose track.

  Args:
    params: float32 [P], from `character_params`.
    pose: float32 [T, 14], fields as in `pose.POSE_FIELDS`.
    size: height and width of a picture in pixels.
    supersample: samples per pixel along each axis, averaged in a box.

  Returns:
    uint8 [T, size, size, 3].

  Raises:
    ValueError: params or pose has another shape.
  """
  if params.shape != (len(PARAM_FIELDS),):
    raise ValueError(f"params: found shape {params.shape}, expected ({len(PARAM_FIELDS)},)")
  if pose.ndim != 2 or pose.shape[1] != len(POSE_FIELDS):
    raise ValueError(f"pose: found shape {pose.shape}, expected (T, {len(POSE_FIELDS)})")
  frames = pose.shape[0]
  out = np.empty((frames, size, size, 3), np.uint8)
  for start in range(0, frames, CHUNK):
    part = pose[start : start + CHUNK].astype(np.float32)
    padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0)), mode="edge")
    drawn = _render_chunk(params.astype(np.float32), padded, size, supersample)
    out[start : start + CHUNK] = np.asarray(drawn)[: len(part)]
  return out


def render_reference(params: np.ndarray, kind: int, label: int, seed: int, size: int = 64) -> np.ndarray:
  """One reference picture uint8 [size, size, 3].

  Args:
    params: float32 [P].
    kind: index in clip.REFERENCE_KINDS.
    label: index in clip.VIEWS or clip.EXPRESSIONS; 0 for a global picture.
    seed: small variations of pose.
  """
  rng = np.random.default_rng([seed, kind, label, 0x5EF])
  wobble = {name: rng.uniform(-0.06, 0.06) for name in ("yaw", "pitch", "roll")}
  wobble |= {"lean_x": rng.uniform(-0.3, 0.3), "lean_y": rng.uniform(-0.3, 0.3)}
  if kind == 0:
    wobble["yaw"] *= 3.0
    fields = {
      **wobble,
      "smile": rng.uniform(-0.2, 0.3),
      "gaze_x": rng.uniform(-0.6, 0.6),
      "gaze_y": rng.uniform(-0.4, 0.4),
      "brow": rng.uniform(-0.15, 0.25),
    }
  elif kind == 1:
    fields = wobble
    fields["yaw"] += VIEW_YAW[clip.VIEWS[label]]
  elif kind == 2:
    strength = rng.uniform(0.9, 1.0)
    fields = {name: strength * x for name, x in expression_pose(clip.EXPRESSIONS[label]).items()}
    fields = {name: fields.get(name, 0.0) + wobble.get(name, 0.0) for name in {**wobble, **fields}}
  else:
    raise ValueError(f"kind: found {kind}, expected 0..{len(clip.REFERENCE_KINDS) - 1}")
  return render(params, make_pose(1, **fields), size)[0]


class _Buffers(NamedTuple):
  """What the solids leave for paint and light, per sample [S, S]."""

  z: Array
  normal: Array  # [3, S, S], world
  albedo: Array  # [3, S, S]
  material: Array  # [skin, hair, face, torso], [4, S, S]
  edge: Array
  cover: Array


@functools.partial(jax.jit, static_argnums=(2, 3))
def _render_chunk(params: Array, pose: Array, size: int, supersample: int) -> Array:
  """Each stage loops over the frames: its results are stored once instead of being computed for every use."""
  p = SimpleNamespace(**dict(zip(PARAM_FIELDS, params, strict=True)))
  samples = size * supersample
  step = 2.0 / samples
  line = (jnp.arange(samples, dtype=jnp.float32) + 0.5) * step - 1.0
  x, y = line[None, :], -line[:, None]

  def state(frame: Array) -> dict[str, Array]:
    fields = dict(zip(POSE_FIELDS, frame, strict=True))
    return fields | frame_state(p, SimpleNamespace(**fields))

  def names(scalars: dict[str, Array]) -> SimpleNamespace:
    return SimpleNamespace(**vars(p), **scalars)

  def stage(function, *inputs):
    return jax.lax.map(lambda args: function(names(args[0]), *args[1:]), (states, *inputs))

  states = jax.vmap(state)(pose)
  tables = jax.vmap(lambda scalars: _tables(names(scalars)))(states)
  depths = stage(lambda s, table: cast(table[1], x, y), tables)
  buffers = stage(lambda s, table, cast_: _composite(s, *table, *cast_, x, y, step), tables, depths)
  at = stage(lambda s, b: _face_coordinates(s, x, y, b.z), buffers)
  masks = stage(lambda s, uv: jnp.stack([d.mask for d in decals(*uv[:2], s, step)]), at)
  paints = jax.vmap(lambda scalars: _paints(names(scalars)))(states)
  surfaces = stage(lambda s, *b: _surface(s, *b, x, y, step), buffers, paints, masks, at)
  image = stage(lambda s, surface, b: _colour(s, surface, b.cover, x, y, size), surfaces, buffers)
  return jnp.round(jnp.clip(image, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _tables(s: SimpleNamespace) -> tuple[Figure, Quadrics]:
  parts = figure(s)
  torso = (jnp.arange(len(PARTS)) < TORSO_PARTS)[:, None]
  rotations = jnp.where(torso[:, :, None], s.torso, s.head)
  origins = jnp.where(torso, s.torso_at, s.head_at)
  return parts, quadrics(parts.centre, parts.radii, rotations, origins)


def _paints(s: SimpleNamespace) -> Array:
  """Colour and unlit part of each decal, [D, 4]; they do not depend on the sample."""
  somewhere = jnp.float32(0.0)
  drawn = decals(somewhere, somewhere, s, 1.0)
  return jnp.array([(*d.colour, d.unlit) for d in drawn], jnp.float32)


def _composite(
  s: SimpleNamespace,
  parts: Figure,
  table: Quadrics,
  z: Array,
  edge: Array,
  x: Array,
  y: Array,
  step: float,
) -> _Buffers:
  """Blends the solids; the weighted sums over them are one matrix product."""
  cover = jnp.clip(edge / step + 0.5, 0.0, 1.0) * parts.shown[:, None, None]
  for name, open_ in openings(s, x, y, z, step).items():
    cover = cover.at[PART[name]].multiply(open_)
  weights = blend_by_depth(z, cover, parts.softness)
  body = (jnp.arange(len(PARTS)) < TORSO_PARTS).astype(jnp.float32)
  one = jnp.ones_like(body)
  constant = jnp.stack([*parts.albedo.T, parts.skin, parts.hair, parts.face, body, one])
  normal = table.normal.transpose(2, 1, 0)
  by_weight = jnp.concatenate([constant, normal[0], normal[1], normal[3]])
  by_depth = jnp.concatenate([normal[2], one[None]])
  sums = jnp.einsum("kn,nhw->khw", by_weight, weights)
  deep = jnp.einsum("kn,nhw->khw", by_depth, weights * z)
  n = sums[8:11] * x + sums[11:14] * y + sums[14:17] + deep[:3]
  n = n * jax.lax.rsqrt(jnp.square(n).sum(0) + 1e-6)
  cover = sums[7]
  # Albedo and material are premultiplied by coverage: divide, so that silhouettes do not darken twice.
  per_cover = 1.0 / jnp.maximum(cover, 1e-3)
  return _Buffers(
    deep[3] * per_cover,
    n,
    sums[:3] * per_cover,
    sums[3:7] * per_cover,
    (weights * edge).sum(0) * per_cover,
    cover,
  )


def _face_coordinates(s: SimpleNamespace, x: Array, y: Array, z: Array) -> tuple[Array, ...]:
  """Stereographic (u, v) of the point seen, in the head's frame; how far it faces the front; strands of hair."""
  q = local_point(s, "head", x, y, z)
  n = (q[0] / s.radius_x, q[1] / (FACE_HEIGHT * s.face_height), q[2] / s.radius_z)
  length = jnp.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-6)
  spread = 2.0 / (length + jnp.maximum(n[2], -0.6 * length))
  front = ramp(-0.35, -0.1, n[2])
  strands = jnp.sin(19.0 * q[0] / length + 17.0 * q[2] * q[1])
  return n[0] * spread * s.radius_x, n[1] * spread * FACE_HEIGHT, front, strands


def _surface(
  s: SimpleNamespace,
  b: _Buffers,
  paints: Array,
  masks: Array,
  at: tuple[Array, ...],
  x: Array,
  y: Array,
  step: float,
) -> Surface:
  """Adds what is painted on the solids: face, strands of hair, shadows, the pattern of the clothes."""
  u, v, front, strands = at
  skin, hair, face, torso = b.material
  shadow = 1.0 - 0.26 * ramp(-0.12, 0.02, v - hairline(u / s.radius_x, s) * FACE_HEIGHT)
  painted = [b.albedo[i] * shadow for i in range(3)]
  unlit = jnp.zeros_like(u)
  for mask, colour in zip(masks, paints, strict=True):
    *painted, unlit = (mix(c, new, mask) for c, new in zip((*painted, unlit), colour, strict=True))
  on_face = face * front
  albedo = [mix(c, new, on_face) for c, new in zip(b.albedo, painted, strict=True)]
  strand = 1.0 + 0.09 * hair * strands
  cast_shadow = torso * ramp(-0.95, -0.5, y - s.torso_at[1]) * (0.25 + 0.2 * skin)
  pattern, accent = clothes_pattern(s, x, y, b.z, step)
  cloth = torso * (1.0 - skin)
  albedo = [mix(c, a, cloth * pattern) for c, a in zip(albedo, accent, strict=True)]
  albedo = tuple(c * strand * (1.0 - cast_shadow) for c in albedo)
  return Surface(tuple(b.normal), albedo, unlit * on_face, skin, hair, b.edge)


def _colour(
  s: SimpleNamespace, surface: Surface, cover: Array, x: Array, y: Array, size: int
) -> Array:
  """The picture of a frame, [size, size, 3]."""
  samples = x.shape[1]
  each = samples // size
  colour = mix3(background(x, y, s), shade(surface, x, y, s), cover)
  blocks = [c.reshape(size, each, size, each).mean((1, 3)) for c in colour]
  return jnp.stack(blocks, axis=-1)
