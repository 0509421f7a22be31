"""The video diffusion transformer of LPM 1.0: one class for Base, Backbone and Refiner.

Trunk: Wan2.1 without its CLIP branch and its channel-concatenated image. New: in every block one
audio branch, parallel to text and sharing its query; even blocks hear the character's own speech
through a narrow window, odd blocks the partner's through a wide one. References are tokens after
the video, at timestep 0.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from lpm_jax.models import remat, rotary
from lpm_jax.models.attention import ChunkCausal, GridMask, TeacherForcing
from lpm_jax.models.blocks import BlockPair, Stream, TransformerConfig, modulate
from lpm_jax.models.cache import KVCache, TurnedCache
from lpm_jax.models.chunk_attention import PART, Source, largest_norm
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.context import Grids
from lpm_jax.models.layers import Linear, TimestepEmbedding, parameter
from lpm_jax.models.spread import spread


class VideoTransformer(nnx.Module):
  """Velocity of noisy video latents under text, two audio tracks and references.

  Args:
    config: sizes.
    rngs: random streams; `params` is used.
  """

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    if config.layers % 2:
      raise ValueError(f"layers: found {config.layers}, expected an even number")
    if config.width % config.heads or (config.width // config.heads) % 2:
      raise ValueError(f"heads: {config.heads} heads do not split a width of {config.width} evenly")
    dtype, width = jnp.dtype(config.dtype), config.width
    self.config = config
    patch = config.channels * config.patch[0] * config.patch[1]
    self.patch_in = Linear(patch, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
    self.timestep = TimestepEmbedding(width, rngs=rngs)
    embed = functools.partial(Linear, dtype=dtype, rngs=rngs)
    self.text_up = embed(config.text_width, width, axes=(None, "embed"))
    self.text_down = embed(width, width, axes=("embed", None))
    self.pairs = _stack(config, rngs)
    table = jax.random.normal(rngs.params(), (2, width)) / width**0.5
    self.head_modulation = parameter(table, (None, "embed"))
    self.head = embed(width, patch, axes=("embed", None), init=nnx.initializers.zeros)

  def __call__(
    self,
    latents: Array,
    timestep: Array,
    conditions: Conditions,
    causal: ChunkCausal | TeacherForcing | None = None,
    time: Array | None = None,
  ) -> Array:
    """Predicts velocity = noise - clean, fp32 [B, F, H, W, C].

    Args:
      latents: [B, F, H, W, C], H and W divisible by the patch.
      timestep: [B, F] in [0, 1], one per latent frame; 0 is clean.
      conditions: see Conditions.
      causal: what a frame of a stream sees and hears, references see each other only; by default
        everything sees everything. With TeacherForcing latents and tracks are given twice, clean
        and noisy.
      time: int32 [B, F], temporal index of each frame where nothing is causal; by default 0, 1, ...

    Raises:
      ValueError: shapes that do not fit each other.
    """
    frames, audible, mask = latents.shape[1], None, None
    if causal:
      time, audible, mask = causal.times(frames), causal.audible(frames), GridMask(causal, frames)
    elif time is None:
      time = jnp.arange(frames)
    time = jnp.broadcast_to(time, latents.shape[:2])
    grids = Grids(frames, _present(conditions, frames), mask)
    return self._run(latents, timestep, conditions, time, grids, audible=audible, keep=False)[0]

  def remember(self, picture: Array, conditions: Conditions) -> KVCache:
    """What the main picture, a clean latent [B, 1, H, W, C], and the references leave behind.

    The picture stands at time 0 and hears the first frame of the tracks. See `extend`.
    """
    timestep, time = jnp.zeros(picture.shape[:2]), jnp.zeros(picture.shape[:2], jnp.int32)
    grids = Grids(1, _present(conditions, 1), GridMask(ChunkCausal(), 1))
    return self._run(picture, timestep, conditions, time, grids)[1]

  def extend(
    self,
    latents: Array,
    timestep: Array,
    conditions: Conditions,
    caches: Sequence[KVCache | TurnedCache],
    start: Array,
  ) -> tuple[Array, KVCache]:
    """The next chunk of a stream, which sees itself and what is in its caches.

    Args:
      latents, timestep: see __call__; the F frames are one chunk. A timestep [B, 1] is that of all
        frames: their tokens are then one sequence.
      conditions: with audio of frames before the chunk, then its own: speak and listen are
        [B, past + F, A, D_audio]; no references ([B, 0, ...]), for the cache has them.
      caches: what came before; `turned` makes them ready once for all calls of a chunk.
      start: int32 [], temporal index of the first frame. The stream is as old: frames of audio
        before time 0 are not heard.

    Returns:
      Velocity fp32 [B, F, H, W, C], and what the chunk leaves behind.
    """
    frames, past = latents.shape[1], conditions.speak.shape[1] - latents.shape[1]
    time = jnp.broadcast_to(start + jnp.arange(frames), latents.shape[:2])
    grids = Grids(frames, jnp.ones(latents.shape[:2], bool))
    seen = jnp.concatenate([*(cache.seen for cache in caches), grids.present], axis=1)
    audible = jnp.arange(past + frames)[None] - past + start >= 0
    audible = jnp.broadcast_to(audible, (frames, past + frames))
    return self._run(latents, timestep, conditions, time, grids, seen, audible, caches)

  def turned(self, cache: KVCache, height: int, width: int) -> TurnedCache:
    """Keys of latents of height x width, turned for `extend`: once for all its calls of a chunk."""
    grids, turn = cache.key.shape[4], self._turn(cache.time, height, width)
    key = rotary.rotate(rearrange(cache.key, "p i b k g n d -> p i b k (g n) d"), turn, heads=1)
    norm, key = largest_norm(key), rearrange(key, "p i b k (g n) d -> p i b k g n d", g=grids)
    return TurnedCache(key, cache.value, norm, cache.seen)

  def _run(
    self,
    latents: Array,
    timestep: Array,
    conditions: Conditions,
    time: Array,
    grids: Grids,
    seen: Array | None = None,
    audible: Array | None = None,
    caches: Sequence[KVCache | TurnedCache] = (),
    keep: bool = True,
  ) -> tuple[Array, KVCache | None]:
    """Velocity and, with `keep`, keys and values; `seen` bool [B, cached + G], with caches."""
    _check_shapes(self.config, latents, timestep, conditions)
    frames = latents.shape[1]
    pictures = jnp.concatenate([latents, conditions.references.astype(latents.dtype)], axis=1)
    times = jnp.concatenate([timestep, jnp.zeros_like(timestep, shape=_slots(conditions))], axis=1)
    kind, label = conditions.reference_kind, conditions.reference_label
    place = jnp.concatenate([time, self.config.offsets(kind, label)], axis=1)
    patches, turn = _patchify(pictures, self.config.patch), self._turn(place, *latents.shape[2:4])
    tokens = patches.shape[2]
    if caches and times.shape[1] == 1:
      patches, turn = _folded(patches, turn, PART if self.config.attention == "chunk" else 1)
    x_bgnd = spread(self.patch_in(patches))
    embedding, modulation = self.timestep(times.astype(jnp.float32))
    stream = Stream(
      turn=turn,
      grids=grids,
      seen=seen,
      text=self.text_down(nnx.gelu(self.text_up(conditions.text), approximate=True)),
      frames=frames,
      tokens=tokens,
      audible=audible,
    )
    past = [
      cache if isinstance(cache, TurnedCache) else self.turned(cache, *latents.shape[2:4])
      for cache in caches
    ]
    x_bgnd, kept = self._run_blocks(x_bgnd, modulation, conditions, stream, past, keep)
    x_bfnd, embedding = x_bgnd[:, :frames], embedding[:, :frames]
    shift, scale = (embedding[:, :, None] + self.head_modulation[...][i] for i in range(2))
    out = self.head(modulate(x_bfnd, shift, scale)).astype(jnp.float32)
    velocity = rearrange(
      stream.unfolded(out),
      "b f (r c) (p q d) -> b f (r p) (c q) d",
      r=latents.shape[2] // self.config.patch[0],
      p=self.config.patch[0],
      q=self.config.patch[1],
    )
    if not keep:
      return velocity, None
    return velocity, KVCache(*kept, place, grids.present)

  def _turn(self, time: Array, height: int, width: int) -> rotary.Turn:
    rows, columns = height // self.config.patch[0], width // self.config.patch[1]
    head = self.config.width // self.config.heads
    return rotary.turn(rotary.grid_angles(time, rows, columns, head))

  def _run_blocks(
    self,
    x_bgnd: Array,
    modulation: Array,
    conditions: Conditions,
    stream: Stream,
    past: Sequence[TurnedCache],
    keep: bool,
  ) -> tuple[Array, tuple[Array, Array] | None]:
    """x after all blocks and, with `keep`, their keys and values [P, 2, B, K, G, N, d]."""
    graphdef, stacked = nnx.split(self.pairs)
    # The fused kernel finds a block in the whole cache; sliced by the scan it would be a copy.
    in_place = bool(past) and self.config.attention == "chunk"
    sliced = [] if in_place else [(cache.key, cache.value) for cache in past]

    def run_pair(x_bgnd: Array, of_pair: tuple) -> tuple[Array, tuple[Array, Array] | None]:
      state, index, slices = of_pair
      pair, kept = nnx.merge(graphdef, state), []
      for i, name in enumerate(("speak", "listen")):
        known = jax.tree.map(lambda x, i=i: x[i], slices)
        if in_place:
          place = jnp.stack([index, i])
          known = [Source(c.key, c.value, c.norm[index, i], place) for c in past]
        audio = getattr(conditions, name)
        x_bgnd, new = getattr(pair, name)(x_bgnd, modulation, audio, stream, known)
        kept.append(new)
      return x_bgnd, tuple(jnp.stack(x) for x in zip(*kept, strict=True)) if keep else None

    run_pair = remat.checkpointed(run_pair, self.config.remat)
    pairs = jnp.arange(self.config.layers // 2)
    return jax.lax.scan(run_pair, x_bgnd, (stacked, pairs, sliced))


def _stack(config: TransformerConfig, rngs: nnx.Rngs) -> BlockPair:
  """All pairs as one module whose parameters have a leading `layers` axis."""
  count = config.layers // 2

  @nnx.split_rngs(splits=count)
  @nnx.vmap(axis_size=count, transform_metadata={nnx.PARTITION_NAME: "layers"})
  def build(rngs: nnx.Rngs) -> BlockPair:
    return BlockPair(config, rngs=rngs)

  return build(rngs)


def _folded(patches: Array, turn: rotary.Turn, multiple: int) -> tuple[Array, rotary.Turn]:
  """Patches [B, F, N, d] as one sequence [B, 1, S, d], S a multiple, and rotations as long.

  6 x 1,560 rows over eight devices fill no tiles of 8 x 128; 9,472 do.
  """
  sequence = rearrange(patches, "b f n d -> b 1 (f n) d")
  more = -sequence.shape[2] % multiple
  turn = tuple(jnp.pad(table, ((0, 0), (0, more), (0, 0))) for table in turn)
  return jnp.pad(sequence, ((0, 0), (0, 0), (0, more), (0, 0))), turn


def _patchify(grids: Array, patch: tuple[int, int]) -> Array:
  return rearrange(grids, "b g (r p) (c q) d -> b g (r c) (p q d)", p=patch[0], q=patch[1])


def _slots(conditions: Conditions) -> tuple[int, int]:
  return conditions.reference_kind.shape


def _present(conditions: Conditions, frames: int) -> Array:
  """Every frame and every reference that is there: bool [B, F + R]."""
  video = jnp.ones((conditions.reference_kind.shape[0], frames), bool)
  return jnp.concatenate([video, conditions.reference_kind >= 0], axis=1)


def _check_shapes(
  config: TransformerConfig, latents: Array, timestep: Array, conditions: Conditions
):
  batch, frames, height, width, channels = latents.shape
  wanted = {
    "latents": (latents.shape, (batch, frames, height, width, config.channels)),
    "timestep": (timestep.shape, (batch, 1 if timestep.shape[1] == 1 else frames)),
    "text": (conditions.text.shape[::2], (batch, config.text_width)),
    "references": (conditions.references.shape, (*_slots(conditions), height, width, channels)),
    "reference_kind": (conditions.reference_kind.shape, conditions.reference_label.shape),
  }
  for track in ("speak", "listen"):
    shape = getattr(conditions, track).shape
    wanted[track] = (shape, (batch, max(frames, shape[1]), shape[2], config.audio_width))
  for name, (found, expected) in wanted.items():
    if tuple(found) != tuple(expected):
      raise ValueError(f"{name}: found shape {tuple(found)}, expected {tuple(expected)}")
  if height % config.patch[0] or width % config.patch[1]:
    raise ValueError(f"latents of {height} x {width} do not divide into patches {config.patch}")
