"""Draws a puppet: parameters and pose track in, pictures out, the same pixels for the same input.

One compiled function per picture size serves every character and style; tracks are cut into chunks
of fixed length.
"""

import functools
from collections.abc import Callable, Sequence
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
  FACE_PARTS,
  HAIR_PARTS,
  PART,
  PARTS,
  SKIN_PARTS,
  TORSO_PARTS,
  Figure,
  clothes_pattern,
  figure,
  frame_state,
  hairline,
  local_point,
  openings,
)
from data_pipelines.puppets.geometry import (
  Quadrics,
  Vector,
  cast,
  draw,
  mix,
  mix3,
  peel,
  quadrics,
  ramp,
)
from data_pipelines.puppets.pose import POSE_FIELDS, make_pose
from data_pipelines.puppets.shading import Surface, background, shade

CHUNK = 4
_GROUP = 7
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


def render_reference(
  params: np.ndarray, kind: int, label: int, seed: int, size: int = 64
) -> np.ndarray:
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
  normal: Vector  # world
  albedo: Vector
  material: tuple[Array, ...]  # skin, hair, face, torso
  edge: Array
  cover: Array


@functools.partial(jax.jit, static_argnums=(2, 3))
def _render_chunk(params: Array, pose: Array, size: int, supersample: int) -> Array:
  """Each stage loops over the frames, so its results are stored, not computed for every use."""
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
  parts, table = jax.vmap(lambda scalars: _tables(names(scalars)))(states)
  paints = jax.vmap(lambda scalars: _paints(names(scalars)))(states)
  z, edge = stage(lambda s, t: cast(t, x, y), table)
  holes = stage(lambda s, z: openings(s, x, y, z), z)
  for name, bare in holes.items():
    edge[PART[name]] = jnp.minimum(edge[PART[name]], -bare)
  weights = _blend(stage, parts, z, edge, step)
  buffers = stage(lambda s, *args: _gather(*args, x, y), parts, table, z, edge, weights)
  at = stage(lambda s, b: _face_coordinates(s, x, y, b.z), buffers)
  masks = stage(lambda s, uv: [d.mask for d in decals(*uv[:2], s, step)], at)
  face = stage(lambda s, *args: _painted(s, *args), paints, masks, at)
  surfaces = stage(lambda s, *args: _surface(s, *args, x, y, step), buffers, face, at)
  image = stage(lambda s, surface, b: _colour(s, surface, b.cover, x, y, size), surfaces, buffers)
  return jnp.round(jnp.clip(image, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _blend(
  stage: Callable, parts: Figure, z: list[Array], edge: list[Array], step: float
) -> list[Array]:
  """What each solid contributes to each sample; the sum is the coverage. A few solids a stage."""
  depth, left = jnp.full_like(z[0], -4.0), jnp.ones_like(z[0])
  groups = [slice(i, i + _GROUP) for i in range(0, len(z), _GROUP)]
  drawn, kept = [], []
  for g in groups:
    inputs = depth, z[g], edge[g], parts.shown[:, g], parts.softness[:, g]
    depth, taken = stage(lambda s, *args: draw(*args, step), *inputs)
    drawn.append(taken)
  for taken in reversed(drawn):
    left, weights = stage(lambda s, *args: peel(*args), left, taken)
    kept = weights + kept
  return kept


def _tables(s: SimpleNamespace) -> tuple[Figure, Quadrics]:
  parts = figure(s)
  torso = jnp.array([[name in TORSO_PARTS] for name in PARTS])
  rotations = jnp.where(torso[:, :, None], s.torso, s.head)
  origins = jnp.where(torso, s.torso_at, s.head_at)
  return parts, quadrics(parts.centre, parts.radii, rotations, origins)


def _paints(s: SimpleNamespace) -> Array:
  """Colour and unlit part of each decal, [D, 4]; they do not depend on the sample."""
  somewhere = jnp.float32(0.0)
  drawn = decals(somewhere, somewhere, s, 1.0)
  return jnp.array([(*d.colour, d.unlit) for d in drawn], jnp.float32)


def _gather(
  parts: Figure,
  table: Quadrics,
  z: list[Array],
  edge: list[Array],
  weights: list[Array],
  x: Array,
  y: Array,
) -> _Buffers:
  """Weighted sums over the solids; those of colours and normals are one matrix product."""
  cover = sum(weights)
  # Sums are premultiplied by coverage: divide, so that silhouettes do not darken twice.
  per_cover = 1.0 / jnp.maximum(cover, 1e-3)
  z = sum(w * z_i for w, z_i in zip(weights, z, strict=True)) * per_cover
  # Skull, jaw, muzzle and nose have one outline, that of their union.
  flesh = [PART[name] for name in FACE_PARTS]
  outline = functools.reduce(jnp.maximum, [edge[i] for i in flesh])
  edge = [outline if i in flesh else e for i, e in enumerate(edge)]
  edge = sum(w * e for w, e in zip(weights, edge, strict=True)) * per_cover
  factors = jnp.concatenate([parts.albedo.T, table.normal.transpose(2, 1, 0).reshape(12, -1)])
  sums = jnp.einsum("kn,nhw->khw", factors, jnp.stack(weights))
  normal = sums[3:6] * x + sums[6:9] * y + sums[9:12] * z + sums[12:]
  normal = normal * jax.lax.rsqrt(jnp.square(normal).sum(0) + 1e-6)

  def share(names: Sequence[str]) -> Array:
    return sum(weights[PART[name]] for name in names) * per_cover

  material = (share(SKIN_PARTS), share(HAIR_PARTS), share(FACE_PARTS), share(TORSO_PARTS))
  return _Buffers(z, tuple(normal), tuple(sums[:3] * per_cover), material, edge, cover)


def _face_coordinates(s: SimpleNamespace, x: Array, y: Array, z: Array) -> tuple[Array, ...]:
  """Where the point seen lies on the head: (u, v) of the face, frontness, strands of hair."""
  q = local_point(s, "head", x, y, z)
  n = (q[0] / s.radius_x, q[1] / (FACE_HEIGHT * s.face_height), q[2] / s.radius_z)
  length = jnp.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-6)
  spread = 2.0 / (length + jnp.maximum(n[2], -0.6 * length))
  front = ramp(-0.35, -0.1, n[2])
  strands = jnp.sin(19.0 * q[0] / length + 17.0 * q[2] * q[1])
  return n[0] * spread * s.radius_x, n[1] * spread * FACE_HEIGHT, front, strands


def _painted(
  s: SimpleNamespace, paints: Array, masks: list[Array], at: tuple[Array, ...]
) -> tuple[Array, ...]:
  """The skin with all decals on it, in the shadow of the hair: red, green, blue, unlit."""
  u, v, *_ = at
  shadow = 1.0 - 0.26 * ramp(-0.12, 0.02, v - hairline(u / s.radius_x, s) * FACE_HEIGHT)
  face = (s.skin_r * shadow, s.skin_g * shadow, s.skin_b * shadow, jnp.zeros_like(u))
  for mask, colour in zip(masks, paints, strict=True):
    face = tuple(mix(c, new, mask) for c, new in zip(face, colour, strict=True))
  return face


def _surface(
  s: SimpleNamespace,
  b: _Buffers,
  face: tuple[Array, ...],
  at: tuple[Array, ...],
  x: Array,
  y: Array,
  step: float,
) -> Surface:
  """Puts face, strands, the shadow of the head and the pattern of the clothes on the solids."""
  front, strands = at[2:]
  skin, hair, flesh, torso = b.material
  on_face = flesh * front
  albedo = mix3(b.albedo, face[:3], on_face)
  cast_shadow = torso * ramp(-0.95, -0.5, y - s.torso_at[1]) * (0.25 + 0.2 * skin)
  pattern, accent = clothes_pattern(s, x, y, b.z, step)
  albedo = mix3(albedo, accent, torso * (1.0 - skin) * pattern)
  light = (1.0 + (0.09 + 0.07 * s.look_clay) * hair * strands) * (1.0 - cast_shadow)
  return Surface(b.normal, tuple(c * light for c in albedo), face[3] * on_face, skin, hair, b.edge)


def _colour(
  s: SimpleNamespace, surface: Surface, cover: Array, x: Array, y: Array, size: int
) -> Array:
  """The picture of a frame, [size, size, 3]."""
  samples = x.shape[1]
  each = samples // size
  colour = mix3(background(x, y, s), shade(surface, x, y, s), cover)
  blocks = [c.reshape(size, each, size, each).mean((1, 3)) for c in colour]
  return jnp.stack(blocks, axis=-1)
