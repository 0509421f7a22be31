"""Causal video autoencoder with the structure of Wan2.1's: 1 + 4k frames <-> 1 + k latent frames.

Source: Wan2.1 `wan/modules/vae.py` (structure and cache rules). Wan runs frame 0 alone and then
groups of four, with a cache; here one parallel pass gives the same numbers, and the stream runs the
same code chunk by chunk with the cache as a pytree that goes in and comes out.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array

from lpm_jax.models.vae_layers import (
  CausalConv,
  Downsample,
  FrameAttention,
  LinearCodec,
  PointConv,
  ResidualBlock,
  RMSNorm,
  Tape,
  Upsample,
)

# A posterior this narrow lets the decoder see the picture from the first step of training.
_FIRST_LOG_VARIANCE = -5.0


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Size of a `VideoVAE`; the defaults are Wan2.1's.

  Attributes:
    base: channels at full resolution.
    multipliers: channels of each stage, in units of `base`; height and width halve between stages.
    blocks: residual blocks per encoder stage (the decoder has one more).
    temporal: for each of the halvings, whether it halves time too.
    latent_channels: channels of a latent.
    shortcut: whether a `LinearCodec` runs beside the network (Wan2.1 has none).
    dtype: of the computation; parameters stay float32.
  """

  base: int = 96
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  temporal: tuple[bool, ...] = (False, True, True)
  latent_channels: int = 16
  shortcut: bool = False
  dtype: str = "float32"

  def __post_init__(self):
    if len(self.temporal) != len(self.multipliers) - 1:
      raise ValueError(
        f"VAEConfig.temporal: found {len(self.temporal)} entries, expected one for each halving: "
        f"{len(self.multipliers) - 1}"
      )
    odd = [m for m in self.multipliers[1:] if self.base * m % 2]
    if odd:
      raise ValueError(f"VAEConfig: base {self.base} x multiplier {odd[0]} must be even")

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of each stage, full resolution first."""
    return tuple(self.base * m for m in self.multipliers)

  @property
  def spatial_stride(self) -> int:
    """Pixels per latent, along height and width."""
    return 2 ** len(self.temporal)

  @property
  def temporal_stride(self) -> int:
    """Video frames per latent frame after the first."""
    return 2 ** sum(self.temporal)

  def latent_frames(self, frames: int) -> int:
    """Latent frames of 1 + k * temporal_stride video frames; ValueError for any other count."""
    if frames < 1 or (frames - 1) % self.temporal_stride:
      raise ValueError(f"video: found {frames} frames, expected 1 + {self.temporal_stride}k")
    return 1 + (frames - 1) // self.temporal_stride


def wan21() -> VAEConfig:
  """The size of Wan2.1's autoencoder."""
  return VAEConfig()


def puppets() -> VAEConfig:
  """The size that trains and streams on a laptop CPU at 64x64."""
  return VAEConfig(base=8, multipliers=(1, 2, 4, 4), blocks=1, latent_channels=24, shortcut=True)


class LatentStatistic(nnx.Variable):
  """Mean or standard deviation of each latent channel: measured on data, not trained."""


@struct.dataclass
class VAECache:
  """What a stream carries from one chunk to the next.

  Attributes:
    past: kept frames of every causal layer, [B, 1 or 2, H, W, C] each; shapes never change.
    started: False before the first chunk. Part of the tree's structure, so that under `jax.jit`
      the first step compiles once and all later steps share one more compilation.
  """

  past: tuple[Array, ...]
  started: bool = struct.field(pytree_node=False, default=False)

  def axes(self) -> "VAECache":
    """Logical names of the axes, in place of the arrays."""
    return jax.tree.map(lambda x: ("batch",) + (None,) * (x.ndim - 1), self)

  def tape(self) -> Tape:
    """The tape of the next chunk."""
    return Tape(self.past if self.started else None)


class VideoVAE(nnx.Module):
  """Causal video autoencoder; latents are normalised per channel to mean 0 and deviation 1.

  Shapes: video float [B, T, H, W, 3] in [-1, 1], T = 1 + k * temporal_stride; latents float
  [B, 1 + k, H / spatial_stride, W / spatial_stride, latent_channels]. A picture is a video of one
  frame.
  """

  def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
    self.config = config
    channels = config.latent_channels
    self.encoder = Encoder(config, rngs=rngs)
    self.quant = PointConv(2 * channels, 2 * channels, rngs=rngs)
    start = jnp.where(jnp.arange(2 * channels) < channels, 0.0, _FIRST_LOG_VARIANCE)
    self.quant.bias[...] = start
    self.post_quant = PointConv(channels, channels, rngs=rngs)
    self.decoder = Decoder(config, rngs=rngs)
    patch = (config.temporal_stride, config.spatial_stride)
    self.shortcut = LinearCodec(channels, patch, rngs=rngs) if config.shortcut else None
    if config.shortcut:
      for network in (self.encoder, self.decoder):  # the matrices alone at first
        kernel = network.head.conv.kernel
        kernel[...] = jnp.zeros_like(kernel[...])
    self.latent_mean = LatentStatistic(jnp.zeros(channels))
    self.latent_std = LatentStatistic(jnp.ones(channels))

  def encode_moments(self, video: Array) -> tuple[Array, Array]:
    """Mean and log-variance of the posterior, not normalised, float32 [B, F, h, w, C] each."""
    self._check_video(video)
    self.config.latent_frames(video.shape[1])
    return self._encode(video, Tape())

  def encode(self, video: Array) -> Array:
    """Normalised posterior mean of a video: latents float32 [B, F, h, w, C]."""
    return self.normalise(self.encode_moments(video)[0])

  def decode(self, latents: Array) -> Array:
    """Video float32 [B, T, H, W, 3], clamped to [-1, 1], of normalised latents [B, F, h, w, C]."""
    self._check_latents(latents)
    return jnp.clip(self.decode_posterior(self.denormalise(latents)), -1.0, 1.0)

  def decode_posterior(self, sample: Array) -> Array:
    """Video, not clamped, of a mean or sample of the posterior (not normalised)."""
    self._check_latents(sample)
    return self._decode(sample, Tape())

  def normalise(self, latents: Array) -> Array:
    """Subtracts the mean of each channel and divides by its deviation."""
    return (latents - self.latent_mean[...]) / self.latent_std[...]

  def denormalise(self, latents: Array) -> Array:
    """The inverse of `normalise`."""
    return latents * self.latent_std[...] + self.latent_mean[...]

  def channel_gains(self) -> Array:
    """How much of each latent channel is seen: fp32 [C], 1 in the mean.

    The norm of what a unit of it, in the middle of a small picture, changes in the decoded video.
    Latents have a variance of 1 in every channel, but a few carry most of what pixels do.
    """
    still = jnp.zeros((1, 3, 3, 3, self.config.latent_channels))
    seen = self.decode_posterior(self.denormalise(still))

    def gain(channel: Array) -> Array:
      unit = self.denormalise(still.at[0, 1, 1, 1, channel].set(1.0))
      return jnp.linalg.norm(self.decode_posterior(unit) - seen)

    gains = jax.lax.map(gain, jnp.arange(still.shape[-1]))
    return gains / gains.mean()

  def init_encode_cache(self, batch: int, height: int, width: int) -> VAECache:
    """Empty cache of a stream of videos of height x width pixels."""
    video = jax.ShapeDtypeStruct((batch, 1, height, width, 3), jnp.float32)
    self._check_video(video)
    return _empty_cache(self._encode, video)

  def encode_step(self, frames: Array, cache: VAECache) -> tuple[Array, VAECache]:
    """Latent [B, 1, h, w, C] of the next frames: 1 at the first step, temporal_stride after.

    `frames` is [B, 1 or temporal_stride, H, W, 3]. Joined latents equal `encode` of the whole.
    """
    self._check_video(frames)
    expected = self.config.temporal_stride if cache.started else 1
    if frames.shape[1] != expected:
      step = "a later" if cache.started else "the first"
      raise ValueError(f"frames: found {frames.shape[1]} at {step} step, expected {expected}")
    tape = cache.tape()
    mean, _ = self._encode(frames, tape)
    return self.normalise(mean), VAECache(tuple(tape.kept), started=True)

  def init_decode_cache(self, batch: int, height: int, width: int) -> VAECache:
    """Empty cache of a stream of latents of height x width."""
    shape = (batch, 1, height, width, self.config.latent_channels)
    return _empty_cache(self._decode, jax.ShapeDtypeStruct(shape, jnp.float32))

  def decode_step(self, latent: Array, cache: VAECache) -> tuple[Array, VAECache]:
    """Next frames [B, 1 at the first step and temporal_stride after, H, W, 3] of one latent frame.

    `latent` is [B, 1, h, w, C]. Joined frames equal `decode` of the whole.
    """
    self._check_latents(latent)
    if latent.shape[1] != 1:
      raise ValueError(f"latent: found {latent.shape[1]} latent frames, expected 1 a step")
    tape = cache.tape()
    video = self._decode(self.denormalise(latent), tape)
    return jnp.clip(video, -1.0, 1.0), VAECache(tuple(tape.kept), started=True)

  def _encode(self, video: Array, tape: Tape) -> tuple[Array, Array]:
    moments = self.quant(self.encoder(video.astype(self.config.dtype), tape))
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    if self.shortcut is not None:
      mean = mean + self.shortcut.encode(video.astype(jnp.float32), starts=tape.starts)
    return mean, log_variance

  def _decode(self, latents: Array, tape: Tape) -> Array:
    x = self.post_quant(latents.astype(self.config.dtype))
    video = self.decoder(x, tape).astype(jnp.float32)
    if self.shortcut is not None:
      video = video + self.shortcut.decode(latents.astype(jnp.float32), starts=tape.starts)
    return video

  def _check_video(self, video: Array):
    stride = self.config.spatial_stride
    if video.ndim != 5 or video.shape[-1] != 3:
      raise ValueError(f"video: found shape {video.shape}, expected [B, T, H, W, 3]")
    if video.shape[2] % stride or video.shape[3] % stride:
      size = f"{video.shape[2]} x {video.shape[3]}"
      raise ValueError(f"video: found {size} pixels, expected multiples of {stride}")

  def _check_latents(self, latents: Array):
    channels = self.config.latent_channels
    if latents.ndim != 5 or latents.shape[-1] != channels:
      raise ValueError(f"latents: found shape {latents.shape}, expected [B, F, h, w, {channels}]")


def _empty_cache(run: Callable, x: jax.ShapeDtypeStruct) -> VAECache:
  """Zeros of the shapes that a first chunk leaves behind."""

  def kept(x: Array) -> tuple[Array, ...]:
    tape = Tape()
    run(x, tape)
    return tuple(tape.kept)

  return VAECache(tuple(jnp.zeros(s.shape, s.dtype) for s in jax.eval_shape(kept, x)))


class Encoder(nnx.Module):
  """Video [B, T, H, W, 3] -> moments [B, F, h, w, 2 * latent_channels] before the 1x1x1 conv."""

  def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
    widths = config.widths
    self.conv_in = CausalConv(3, widths[0], rngs=rngs)
    self.stages = nnx.List()
    width = widths[0]
    for i, out in enumerate(widths):
      temporal = config.temporal[i] if i < len(config.temporal) else None
      resample = None if temporal is None else Downsample(out, temporal=temporal, rngs=rngs)
      self.stages.append(Stage(width, out, config.blocks, resample, rngs=rngs))
      width = out
    self.middle = Middle(width, rngs=rngs)
    self.head = Head(width, 2 * config.latent_channels, rngs=rngs)

  def __call__(self, x: Array, tape: Tape) -> Array:
    x = self.conv_in(x, tape)
    for stage in self.stages:
      x = stage(x, tape)
    return self.head(self.middle(x, tape), tape)


class Decoder(nnx.Module):
  """Latents [B, F, h, w, latent_channels] after the 1x1x1 conv -> video [B, T, H, W, 3]."""

  def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
    widths = config.widths[::-1]
    self.conv_in = CausalConv(config.latent_channels, widths[0], rngs=rngs)
    self.middle = Middle(widths[0], rngs=rngs)
    self.stages = nnx.List()
    width = widths[0]
    for i, out in enumerate(widths):
      temporal = config.temporal[-1 - i] if i < len(config.temporal) else None
      resample = None if temporal is None else Upsample(out, temporal=temporal, rngs=rngs)
      self.stages.append(Stage(width, out, config.blocks + 1, resample, rngs=rngs))
      width = out // 2
    self.head = Head(widths[-1], 3, rngs=rngs)

  def __call__(self, x: Array, tape: Tape) -> Array:
    x = self.middle(self.conv_in(x, tape), tape)
    for stage in self.stages:
      x = stage(x, tape)
    return self.head(x, tape)


class Stage(nnx.Module):
  """Residual blocks at one resolution, then a change of resolution (none in the last stage)."""

  def __init__(
    self,
    width: int,
    out: int,
    blocks: int,
    resample: Downsample | Upsample | None,
    *,
    rngs: nnx.Rngs,
  ):
    self.blocks = nnx.List(
      ResidualBlock(out if i else width, out, rngs=rngs) for i in range(blocks)
    )
    self.resample = resample

  def __call__(self, x: Array, tape: Tape) -> Array:
    for block in self.blocks:
      x = block(x, tape)
    return x if self.resample is None else self.resample(x, tape)


class Middle(nnx.Module):
  """Residual block, attention within each frame, residual block."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.block_1 = ResidualBlock(width, width, rngs=rngs)
    self.attention = FrameAttention(width, rngs=rngs)
    self.block_2 = ResidualBlock(width, width, rngs=rngs)

  def __call__(self, x: Array, tape: Tape) -> Array:
    return self.block_2(self.attention(self.block_1(x, tape)), tape)


class Head(nnx.Module):
  """norm, SiLU, conv to the channels of the result."""

  def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
    self.norm = RMSNorm(width)
    self.conv = CausalConv(width, out, rngs=rngs)

  def __call__(self, x: Array, tape: Tape) -> Array:
    return self.conv(nnx.silu(self.norm(x)), tape)
