"""The video diffusion transformer of LPM 1.0: one class for Base, Backbone and Refiner.

Trunk: Wan2.1 without its CLIP branch and its channel-concatenated image. New: in every block one
audio branch, parallel to text and sharing its query; even blocks hear the character's own speech
through a narrow window, odd blocks the partner's through a wide one. References are tokens after
the video, at timestep 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from lpm_jax.models import rotary
from lpm_jax.models.attention import attend, window_mask
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.identity import ReferenceOffsets
from lpm_jax.models.layers import (
  FeedForward,
  LayerNorm,
  Linear,
  RMSNorm,
  TimestepEmbedding,
  layer_norm,
  parameter,
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes of the transformer; the defaults are the `puppets` scale.

  Args:
    width: model width D.
    heads: attention heads K.
    layers: blocks, an even number (speak and listen blocks alternate).
    hidden: inner width of the feed-forward layer.
    channels: latent channels C.
    patch: rows and columns of latents in one token.
    text_width: D_text.
    audio_width: D_audio.
    speak_window: latent frames before and after that a speak block hears.
    listen_window: the same for a listen block; 12 latent frames are 2 s.
    offsets: temporal indices of references.
    remat: what the backward pass keeps of a pair of blocks: "none" keeps everything, otherwise the
      name of a policy in jax.checkpoint_policies.
    dtype: of the computation; parameters are fp32.
  """

  width: int = 192
  heads: int = 3
  layers: int = 8
  hidden: int = 512
  channels: int = 16
  patch: tuple[int, int] = (2, 2)
  text_width: int = 128
  audio_width: int = 128
  speak_window: tuple[int, int] = (1, 1)
  listen_window: tuple[int, int] = (12, 2)
  offsets: ReferenceOffsets = ReferenceOffsets()
  remat: str = "none"
  dtype: str = "float32"

  @classmethod
  def lpm_17b(cls) -> "TransformerConfig":
    """The published size: Wan2.1-14B with audio K, V and O of 5120 x 5120 in all 40 blocks."""
    return cls(
      width=5120,
      heads=40,
      layers=40,
      hidden=13824,
      text_width=4096,
      audio_width=5120,
      remat="nothing_saveable",
      dtype="bfloat16",
    )


@dataclasses.dataclass
class Stream:
  """What all blocks share: rotary angles, masks and the two embedded conditions of a block."""

  angle: Array  # fp32 [B or 1, S, d / 2]
  mask: Array  # bool [B, 1, 1, S]: empty reference slots are not looked at
  text: Array  # [B, L, D]
  frames: int  # latent frames of video, the rest of a sequence are references


class SelfAttention(nnx.Module):
  """Attention over video and reference tokens; q and k are RMS-normalised over the full width."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    dense = functools.partial(_dense, config, rngs)
    self.heads = config.heads
    self.query, self.key, self.value = dense(), dense(), dense()
    self.out = dense(axes=("heads", "embed"))
    self.query_norm, self.key_norm = RMSNorm(config.width), RMSNorm(config.width)

  def __call__(self, x: Array, stream: Stream) -> Array:
    query = rotary.rotate(_heads(self.query_norm(self.query(x)), self.heads), stream.angle)
    key = rotary.rotate(_heads(self.key_norm(self.key(x)), self.heads), stream.angle)
    value = _heads(self.value(x), self.heads)
    return self.out(_join(attend(query, key, value, mask=stream.mask)))


class TextAudioAttention(nnx.Module):
  """Text and audio cross-attention in parallel: shared query, separate K, V and O, outputs summed.

  Only video tokens ask: a reference has no time to hear at and no action to follow. Queries and
  audio keys are turned by time, one step an audio token, so that a frame tells now from just
  before. The audio values start at zero and the audio output has no bias: until it is trained the
  audio branch adds nothing.
  """

  def __init__(
    self,
    config: TransformerConfig,
    window: tuple[int, int],
    *,
    rngs: nnx.Rngs,
  ):
    dense = functools.partial(_dense, config, rngs)
    self.heads, self.window = config.heads, window
    self.query, self.query_norm = dense(), RMSNorm(config.width)
    self.text_key, self.text_value = dense(), dense()
    self.text_key_norm = RMSNorm(config.width)
    self.text_out = dense(axes=("heads", "embed"))
    self.audio_key = dense(width=config.audio_width)
    self.audio_value = dense(width=config.audio_width, init=nnx.initializers.zeros)
    self.audio_key_norm = RMSNorm(config.width)
    self.audio_out = dense(axes=("heads", "embed"), bias=False)

  def __call__(self, x_bfnd: Array, text: Array, audio: Array) -> Array:
    """x [B, F, N, D], text [B, L, D], audio [B, F, A, D_audio] -> [B, F, N, D]."""
    frames, tokens, per_frame = x_bfnd.shape[1], x_bfnd.shape[2], audio.shape[2]
    query = self.query_norm(self.query(rearrange(x_bfnd, "b f n d -> b (f n) d")))
    query = _heads(query, self.heads)
    text_key = _heads(self.text_key_norm(self.text_key(text)), self.heads)
    seen = attend(query, text_key, _heads(self.text_value(text), self.heads))

    audio = rearrange(audio, "b f a d -> b (f a) d")
    audio_key = _heads(self.audio_key_norm(self.audio_key(audio)), self.heads)
    query_time = jnp.repeat(jnp.arange(frames) * per_frame, tokens)
    key_time = jnp.arange(frames * per_frame) - per_frame + 1
    head = query.shape[-1]
    mask = jnp.repeat(window_mask(frames, per_frame, *self.window), tokens, axis=0)
    heard = attend(
      rotary.rotate(query, rotary.angles(query_time, head)[None]),
      rotary.rotate(audio_key, rotary.angles(key_time, head)[None]),
      _heads(self.audio_value(audio), self.heads),
      mask=mask[None, None],
    )
    out = self.text_out(_join(seen)) + self.audio_out(_join(heard))
    return rearrange(out, "b (f n) d -> b f n d", f=frames)


class Block(nnx.Module):
  """One block of figure 5: self-attention, text and audio, feed-forward; AdaLN per latent frame.

  Args:
    config: sizes.
    window: latent frames before and after that the audio branch hears.
  """

  def __init__(self, config: TransformerConfig, window: tuple[int, int], *, rngs: nnx.Rngs):
    table = jax.random.normal(rngs.params(), (6, config.width)) / config.width**0.5
    self.modulation = parameter(table, (None, "embed"))
    self.self_attention = SelfAttention(config, rngs=rngs)
    self.cross_norm = LayerNorm(config.width)
    self.cross_attention = TextAudioAttention(config, window, rngs=rngs)
    self.feed_forward = FeedForward(
      config.width, config.hidden, dtype=jnp.dtype(config.dtype), rngs=rngs
    )

  def __call__(self, x_bgnd: Array, modulation: Array, audio: Array, stream: Stream) -> Array:
    """x [B, F + R, N, D], modulation fp32 [B, F + R, 6, D], audio [B, F, A, D_audio]."""
    grids = x_bgnd.shape[1]
    table = modulation + self.modulation[...]
    shift1, scale1, gate1, shift2, scale2, gate2 = (table[:, :, None, i] for i in range(6))

    normed = _modulate(x_bgnd, shift1, scale1)
    attended = self.self_attention(rearrange(normed, "b g n d -> b (g n) d"), stream)
    attended = rearrange(attended, "b (g n) d -> b g n d", g=grids)
    x_bgnd = x_bgnd + (gate1 * attended).astype(x_bgnd.dtype)

    video, references = x_bgnd[:, : stream.frames], x_bgnd[:, stream.frames :]
    video = video + self.cross_attention(self.cross_norm(video), stream.text, audio)
    x_bgnd = jnp.concatenate([video, references], axis=1)

    normed = _modulate(x_bgnd, shift2, scale2)
    return x_bgnd + (gate2 * self.feed_forward(normed)).astype(x_bgnd.dtype)


class BlockPair(nnx.Module):
  """An even block, which hears its own speech, and an odd block, which hears the partner's."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.speak = Block(config, config.speak_window, rngs=rngs)
    self.listen = Block(config, config.listen_window, rngs=rngs)


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

  def __call__(self, latents: Array, timestep: Array, conditions: Conditions) -> Array:
    """Predicts velocity = noise - clean, fp32 [B, F, H, W, C].

    Args:
      latents: [B, F, H, W, C], H and W divisible by the patch.
      timestep: [B, F] in [0, 1], one per latent frame; 0 is clean.
      conditions: see Conditions.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    _check_shapes(self.config, latents, timestep, conditions)
    frames = latents.shape[1]
    grids = jnp.concatenate([latents, conditions.references.astype(latents.dtype)], axis=1)
    times = jnp.concatenate([timestep, jnp.zeros_like(timestep, shape=_slots(conditions))], axis=1)
    x_bgnd = self.patch_in(_patchify(grids, self.config.patch))
    embedding, modulation = self.timestep(times.astype(jnp.float32))
    stream = Stream(
      angle=self._angles(frames, grids, conditions),
      mask=_key_mask(frames, x_bgnd.shape[2], conditions),
      text=self.text_down(nnx.gelu(self.text_up(conditions.text), approximate=True)),
      frames=frames,
    )
    x_bgnd = self._run_blocks(x_bgnd, modulation, conditions, stream)
    x_bfnd, embedding = x_bgnd[:, :frames], embedding[:, :frames]
    shift, scale = (embedding[:, :, None] + self.head_modulation[...][i] for i in range(2))
    out = self.head(_modulate(x_bfnd, shift, scale)).astype(jnp.float32)
    rows = latents.shape[2] // self.config.patch[0]
    return rearrange(
      out,
      "b f (r c) (p q d) -> b f (r p) (c q) d",
      r=rows,
      p=self.config.patch[0],
      q=self.config.patch[1],
    )

  def _angles(self, frames: int, grids: Array, conditions: Conditions) -> Array:
    kind, label = conditions.reference_kind, conditions.reference_label
    batch = kind.shape[0]
    video = jnp.broadcast_to(jnp.arange(frames), (batch, frames))
    time = jnp.concatenate([video, self.config.offsets(kind, label)], axis=1)
    rows, columns = (n // p for n, p in zip(grids.shape[2:4], self.config.patch, strict=True))
    return rotary.grid_angles(time, rows, columns, self.config.width // self.config.heads)

  def _run_blocks(
    self, x_bgnd: Array, modulation: Array, conditions: Conditions, stream: Stream
  ) -> Array:
    graphdef, stacked = nnx.split(self.pairs)

    def run_pair(x_bgnd: Array, state: nnx.State) -> tuple[Array, None]:
      pair = nnx.merge(graphdef, state)
      x_bgnd = pair.speak(x_bgnd, modulation, conditions.speak, stream)
      return pair.listen(x_bgnd, modulation, conditions.listen, stream), None

    if self.config.remat != "none":
      policy = getattr(jax.checkpoint_policies, self.config.remat)
      run_pair = jax.checkpoint(run_pair, policy=policy, prevent_cse=False)
    return jax.lax.scan(run_pair, x_bgnd, stacked)[0]


def _stack(config: TransformerConfig, rngs: nnx.Rngs) -> BlockPair:
  """All pairs as one module whose parameters have a leading `layers` axis."""
  count = config.layers // 2

  @nnx.split_rngs(splits=count)
  @nnx.vmap(axis_size=count, transform_metadata={nnx.PARTITION_NAME: "layers"})
  def build(rngs: nnx.Rngs) -> BlockPair:
    return BlockPair(config, rngs=rngs)

  return build(rngs)


def _dense(
  config: TransformerConfig,
  rngs: nnx.Rngs,
  *,
  width: int | None = None,
  axes: tuple[str, str] = ("embed", "heads"),
  **options,
) -> Linear:
  dtype = jnp.dtype(config.dtype)
  return Linear(width or config.width, config.width, axes=axes, dtype=dtype, rngs=rngs, **options)


def _heads(x: Array, heads: int) -> Array:
  return rearrange(x, "b s (k d) -> b s k d", k=heads)


def _join(x: Array) -> Array:
  return rearrange(x, "b s k d -> b s (k d)")


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
  return (layer_norm(x) * (1.0 + scale) + shift).astype(x.dtype)


def _patchify(grids: Array, patch: tuple[int, int]) -> Array:
  return rearrange(grids, "b g (r p) (c q) d -> b g (r c) (p q d)", p=patch[0], q=patch[1])


def _slots(conditions: Conditions) -> tuple[int, int]:
  return conditions.reference_kind.shape


def _key_mask(frames: int, tokens: int, conditions: Conditions) -> Array:
  video = jnp.ones((conditions.reference_kind.shape[0], frames), bool)
  seen = jnp.concatenate([video, conditions.reference_kind >= 0], axis=1)
  return jnp.repeat(seen, tokens, axis=1)[:, None, None]


def _check_shapes(
  config: TransformerConfig, latents: Array, timestep: Array, conditions: Conditions
):
  batch, frames, height, width, channels = latents.shape
  wanted = {
    "latents": (latents.shape, (batch, frames, height, width, config.channels)),
    "timestep": (timestep.shape, (batch, frames)),
    "text": (conditions.text.shape[::2], (batch, config.text_width)),
    "references": (conditions.references.shape, (*_slots(conditions), height, width, channels)),
    "reference_kind": (conditions.reference_kind.shape, conditions.reference_label.shape),
  }
  for track in ("speak", "listen"):
    shape = getattr(conditions, track).shape
    wanted[track] = (shape, (batch, frames, shape[2], config.audio_width))
  for name, (found, expected) in wanted.items():
    if tuple(found) != tuple(expected):
      raise ValueError(f"{name}: found shape {tuple(found)}, expected {tuple(expected)}")
  if height % config.patch[0] or width % config.patch[1]:
    raise ValueError(f"latents of {height} x {width} do not divide into patches {config.patch}")
