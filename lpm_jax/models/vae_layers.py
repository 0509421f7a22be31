"""Layers of the causal video autoencoder (Wan2.1): causal convolutions, resampling, RMS norm.

Activations are [B, T, H, W, C]. Every layer that looks back in time asks a `Tape` for the frames
before its input: zeros at the start of a video, the kept frames of the previous chunk after that.
One code path therefore serves the whole clip and the stream, and needs nothing from the future.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array, lax

from lpm_jax.models.convolution import video_convolution

_SPATIAL = ("NHWC", "HWIO", "NHWC")
_AXES = ("channels_in", "channels_out")


class Tape:
  """The past of every causal layer, read and written in the order in which the layers run.

  Args:
    past: kept frames [B, n, H, W, C] of each causal layer, or None at the start of a video.

  Attributes:
    starts: whether the frames that run are the first of their video.
    kept: what the next chunk must be given as `past`; the same shapes for every chunk.
  """

  def __init__(self, past: Sequence[Array] | None = None):
    self.starts = past is None
    self.kept: list[Array] = []
    self._past = iter(past or ())

  def extend(self, x: Array, frames: int) -> Array:
    """`x` after the `frames` frames before it; keeps the last `frames` for the next chunk."""
    if self.starts:
      past = jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)
    else:
      past = next(self._past).astype(x.dtype)
    joined = jnp.concatenate([past, x], axis=1)
    self.kept.append(joined[:, -frames:])
    return joined


class Kernel(nnx.Module):
  """Weights of a convolution: kernel [*window, C_in, C_out] and bias [C_out].

  Initialised to variance 1 / fan-in, or to zero.
  """

  def __init__(
    self, window: tuple[int, ...], width: int, out: int, *, zero: bool = False, rngs: nnx.Rngs
  ):
    init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    names = (None,) * len(window) + _AXES
    self.kernel = _parameter(init(rngs.params(), (*window, width, out)), names)
    self.bias = _parameter(jnp.zeros(out), _AXES[1:])


def _parameter(value: Array, names: tuple[str | None, ...]) -> nnx.Param:
  return nnx.Param(value, out_sharding=names, eager_sharding=False)


class CausalConv(Kernel):
  """3x3x3 convolution, zero padded in space and by two past frames in time.

  Starts as a 2-D convolution of the present frame: the past is learned, not unlearned.
  """

  def __init__(self, width: int, out: int, *, zero: bool = False, rngs: nnx.Rngs):
    super().__init__((3, 3, 3), width, out, zero=zero, rngs=rngs)
    self.kernel[...] = self.kernel[...].at[:2].set(0.0) * 3**0.5

  def __call__(self, x: Array, tape: Tape) -> Array:
    joined, kernel = tape.extend(x, 2), self.kernel[...].astype(x.dtype)
    if tape.starts and x.shape[1] == 1:  # a picture: its past is zeros, two taps add nothing
      joined, kernel = x, kernel[2:]
    return video_convolution(joined, kernel) + self.bias[...].astype(x.dtype)


class PointConv(Kernel):
  """1x1x1 convolution: one matrix for every pixel of every frame."""

  def __init__(self, width: int, out: int, *, zero: bool = False, rngs: nnx.Rngs):
    super().__init__((), width, out, zero=zero, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class TimeConv(Kernel):
  """Convolution of three frames at each pixel, valid (unpadded) in time.

  Starts by repeating the last frame it sees in every group of `width` channels.
  """

  def __init__(self, width: int, out: int, *, stride: int = 1, rngs: nnx.Rngs):
    super().__init__((3,), width, out, zero=True, rngs=rngs)
    same = jnp.tile(jnp.eye(width), (1, out // width))
    self.kernel[...] = self.kernel[...].at[2].set(same)
    self.stride = stride

  def __call__(self, x: Array) -> Array:
    kernel = self.kernel[...].astype(x.dtype)
    last = x.shape[1] - 2
    taps = (x[:, i : i + last : self.stride] @ kernel[i] for i in range(3))
    return sum(taps) + self.bias[...].astype(x.dtype)


class LinearMap(nnx.Module):
  """Blocks of pixels [..., P] <-> latents [..., C] by one matrix each way and the mean block."""

  def __init__(self, pixels: int, channels: int, *, rngs: nnx.Rngs):
    basis = nnx.initializers.orthogonal()(rngs.params(), (channels, pixels))
    self.centre = _parameter(jnp.zeros(pixels), (None,))
    self.encode = _parameter(basis.T, _AXES)
    self.decode = _parameter(basis, _AXES)


class LinearCodec(nnx.Module):
  """Video <-> latents, linearly: one map for a first frame, one for every group of frames after it.

  A path beside the network, as the parameter-free shortcuts of Wan2.2's autoencoder are: set to the
  principal components of the data (`LinearMap` holds them) it leaves to the network what no linear
  map of single blocks can see. It has no memory, so a stream needs no cache for it.

  Args:
    channels: latent channels C.
    patch: frames of a group; rows, and columns, of pixels in a block.
  """

  def __init__(self, channels: int, patch: tuple[int, int], *, rngs: nnx.Rngs):
    frames, side = patch
    self.frames, self.side = frames, side
    self.first = LinearMap(3 * side * side, channels, rngs=rngs)
    self.rest = LinearMap(3 * side * side * frames, channels, rngs=rngs)

  def encode(self, video: Array, *, starts: bool) -> Array:
    """Video [B, T, H, W, 3] -> latents [B, F, h, w, C]; `starts`: its first frame is alone."""
    parts = [(self.first, video[:, :1], 1)] if starts else []
    if video.shape[1] > starts:
      parts.append((self.rest, video[:, int(starts) :], self.frames))
    latents = [
      (blocks(part, frames, self.side) - linear.centre[...]) @ linear.encode[...]
      for linear, part, frames in parts
    ]
    return jnp.concatenate(latents, axis=1)

  def decode(self, latents: Array, *, starts: bool) -> Array:
    """Latents [B, F, h, w, C] -> video [B, T, H, W, 3]; `starts`: the first is a single frame."""
    parts = [(self.first, latents[:, :1], 1)] if starts else []
    if latents.shape[1] > starts:
      parts.append((self.rest, latents[:, int(starts) :], self.frames))
    video = [
      unblocks(part @ linear.decode[...] + linear.centre[...], frames, self.side)
      for linear, part, frames in parts
    ]
    return jnp.concatenate(video, axis=1)


def blocks(video: Array, frames: int, side: int) -> Array:
  """Video [B, T, H, W, C] as blocks of frames x side x side: [B, T', H', W', P]."""
  return rearrange(video, "b (t f) (h p) (w q) c -> b t h w (f p q c)", f=frames, p=side, q=side)


def unblocks(pixels: Array, frames: int, side: int) -> Array:
  """The inverse of `blocks`."""
  return rearrange(pixels, "b t h w (f p q c) -> b (t f) (h p) (w q) c", f=frames, p=side, q=side)


class RMSNorm(nnx.Module):
  """x / |x| * sqrt(C) * gamma over the channels, in float32 (Wan2.1 `RMS_norm`, no bias)."""

  def __init__(self, width: int):
    self.gamma = _parameter(jnp.ones(width), _AXES[:1])

  def __call__(self, x: Array) -> Array:
    x32 = x.astype(jnp.float32)
    square = jnp.sum(x32 * x32, axis=-1, keepdims=True)
    scale = lax.rsqrt(jnp.maximum(square, 1e-12)) * x.shape[-1] ** 0.5
    return (x32 * scale * self.gamma[...]).astype(x.dtype)


class ResidualBlock(nnx.Module):
  """norm, SiLU, conv, norm, SiLU, conv; added to the input (1x1x1 conv where widths differ).

  Starts as the shortcut alone.
  """

  def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
    self.norm_1 = RMSNorm(width)
    self.conv_1 = CausalConv(width, out, rngs=rngs)
    self.norm_2 = RMSNorm(out)
    self.conv_2 = CausalConv(out, out, zero=True, rngs=rngs)
    self.shortcut = None if width == out else PointConv(width, out, rngs=rngs)

  def __call__(self, x: Array, tape: Tape) -> Array:
    y = self.conv_1(nnx.silu(self.norm_1(x)), tape)
    y = self.conv_2(nnx.silu(self.norm_2(y)), tape)
    return y + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nnx.Module):
  """Single-head self-attention over the pixels of each frame; starts as the identity."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.norm = RMSNorm(width)
    self.to_qkv = PointConv(width, 3 * width, rngs=rngs)
    self.proj = PointConv(width, width, zero=True, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    b, t, h, w, c = x.shape
    qkv = self.to_qkv(self.norm(x)).reshape(b * t, h * w, 1, 3 * c)
    y = jax.nn.dot_product_attention(*jnp.split(qkv, 3, axis=-1))
    return x + self.proj(y.reshape(x.shape))


class Downsample(nnx.Module):
  """Halves height and width (zero row below, zero column right, 3x3 stride 2), and time if asked.

  The first frame of a video passes the temporal half untouched, so 1 + 2k frames give 1 + k.
  """

  def __init__(self, width: int, *, temporal: bool, rngs: nnx.Rngs):
    self.resample = Kernel((3, 3), width, width, rngs=rngs)
    self.time_conv = TimeConv(width, width, stride=2, rngs=rngs) if temporal else None

  def __call__(self, x: Array, tape: Tape) -> Array:
    b, t, h, w, c = x.shape
    y = lax.conv_general_dilated(
      x.reshape(b * t, h, w, c),
      self.resample.kernel[...].astype(x.dtype),
      (2, 2),
      ((0, 1), (0, 1)),
      dimension_numbers=_SPATIAL,
    )
    y = y.reshape(b, t, h // 2, w // 2, c) + self.resample.bias[...].astype(x.dtype)
    return y if self.time_conv is None else self._halve_time(y, tape)

  def _halve_time(self, x: Array, tape: Tape) -> Array:
    joined = tape.extend(x, 1)
    if not tape.starts:
      return self.time_conv(joined)
    first = x[:, :1]
    return first if x.shape[1] == 1 else jnp.concatenate([first, self.time_conv(x)], axis=1)


class Upsample(nnx.Module):
  """Doubles time if asked, then height and width (nearest, 3x3 to half the channels).

  The first frame of a video passes the temporal half untouched, and frames after it do not see it:
  1 + k frames give 1 + 2k. Even frames are the first half of the channels of the time convolution.
  """

  def __init__(self, width: int, *, temporal: bool, rngs: nnx.Rngs):
    self.time_conv = TimeConv(width, 2 * width, rngs=rngs) if temporal else None
    self.resample = Kernel((3, 3), width, width // 2, rngs=rngs)

  def __call__(self, x: Array, tape: Tape) -> Array:
    if self.time_conv is not None:
      first, rest = (x[:, :1], x[:, 1:]) if tape.starts else (x[:, :0], x)
      x = jnp.concatenate([first, self._double_time(rest, tape)], axis=1)
    b, t, h, w, c = x.shape
    y = video_convolution(x, _before_doubling(self.resample.kernel[...]).astype(x.dtype))
    y = y.reshape(b, t, h, w, 2, 2, c // 2).transpose(0, 1, 2, 4, 3, 5, 6)
    return y.reshape(b, t, 2 * h, 2 * w, c // 2) + self.resample.bias[...].astype(x.dtype)

  def _double_time(self, x: Array, tape: Tape) -> Array:
    b, t, h, w, c = x.shape
    joined = tape.extend(x, 2)
    if t == 0:
      return x
    pairs = self.time_conv(joined).reshape(b, t, h, w, 2, c)
    return jnp.moveaxis(pairs, 4, 2).reshape(b, 2 * t, h, w, c)


def _before_doubling(kernel: Array) -> Array:
  """The 3x3 kernel that, before nearest doubling, gives each of the 2x2 results of a 3x3 after it.

  An even result sees (left, centre, centre) of the small picture, an odd one (centre,
  centre, right).
  Shapes: kernel [3, 3, C, O] -> [1, 3, 3, C, 4 * O], the 2x2 results in row order.
  """
  seen = jnp.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
  seen = seen.astype(kernel.dtype)  # [result, small tap, tap]
  both = jnp.einsum("pai,qbj,ijco->abcpqo", seen, seen, kernel)
  return both.reshape(1, 3, 3, kernel.shape[2], -1)
