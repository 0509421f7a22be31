"""wav2vec 2.0, the frozen audio encoder of the 17B model, and the adapter to its latent frames.

Source: transformers `Wav2Vec2Model`, in both published shapes: `base` (group norm in the first
convolution, norms after the layers) and `large` (layer norm in every convolution, norms before).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from lpm_jax.models.attention import attend
from lpm_jax.models.audio import FRAMES_PER_LATENT, SAMPLE_RATE
from lpm_jax.models.layers import LayerNorm, Linear, layer_norm, parameter

EPSILON = 1e-5
PAST_SECONDS, NEW_SECONDS = 2, 1  # a streaming window of LPM 1.0
FEATURES_PER_SECOND = 50
_OVERHANG = 80  # samples that a feature sees beyond its 20 ms
_TIME = ("NHC", "HIO", "NHC")


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
  """Sizes of the encoder; the defaults are wav2vec2-base.

  Args:
    channels: of every convolution of the waveform.
    kernels: samples, then features, that each convolution sees.
    strides: of the convolutions; their product is 320 samples, 20 ms.
    layer_norm: layer norm in every convolution (with a bias) and before attention and feed-forward;
      otherwise group norm in the first convolution and norms after.
    width: model width.
    heads: attention heads.
    hidden: inner width of the feed-forward layer.
    layers: transformer layers.
    position_kernel: features that the positional convolution sees.
    position_groups: its groups of channels.
    dtype: of the computation; parameters are fp32.
  """

  channels: int = 512
  kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  layer_norm: bool = False
  width: int = 768
  heads: int = 12
  hidden: int = 3072
  layers: int = 12
  position_kernel: int = 128
  position_groups: int = 16
  dtype: str = "float32"

  @classmethod
  def large(cls) -> "Wav2Vec2Config":
    """wav2vec2-large-xlsr-53."""
    return cls(layer_norm=True, width=1024, heads=16, hidden=4096, layers=24)

  def features(self, samples: int) -> int:
    """Features of a waveform of `samples` samples."""
    for kernel, stride in zip(self.kernels, self.strides, strict=True):
      samples = (samples - kernel) // stride + 1
    return max(samples, 0)


def normalise_waveform(waveform: Array) -> Array:
  """Zero mean and unit variance of each waveform [B, S], as the published feature extractors do."""
  centred = waveform - waveform.mean(axis=-1, keepdims=True)
  return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-7)


class WaveConv(nnx.Module):
  """Convolution of a waveform or of its features, a norm, GELU.

  Args:
    width: channels in.
    kernel: positions seen.
    stride: positions between results.
    norm: "group" (each channel over time), "layer" (all channels at a time) or "none".
  """

  def __init__(
    self, width: int, kernel: int, stride: int, norm: str, config: Wav2Vec2Config, *, rngs: nnx.Rngs
  ):
    out = config.channels
    init = nnx.initializers.he_normal()(rngs.params(), (kernel, width, out))
    self.kernel = parameter(init, (None, None, "audio"))
    self.bias = parameter(jnp.zeros(out), ("audio",)) if config.layer_norm else None
    self.norm = None if norm == "none" else LayerNorm(out, epsilon=EPSILON)
    self.over_time, self.stride = norm == "group", stride

  def __call__(self, x: Array) -> Array:
    y = jax.lax.conv_general_dilated(
      x, self.kernel[...].astype(x.dtype), (self.stride,), "VALID", dimension_numbers=_TIME
    )
    if self.bias is not None:
      y = y + self.bias[...].astype(y.dtype)
    if self.over_time:
      normed = jnp.moveaxis(layer_norm(jnp.moveaxis(y, 1, 2), epsilon=EPSILON), 1, 2)
      y = (normed * self.norm.scale[...] + self.norm.bias[...]).astype(y.dtype)
    elif self.norm is not None:
      y = self.norm(y)
    return nnx.gelu(y, approximate=False)


class PositionalConv(nnx.Module):
  """Grouped convolution whose result is added as position; its kernel is gain * direction.

  Each tap of the kernel has its own gain [k] and unit direction [k, C / groups, C] (PyTorch weight
  norm over the taps), kept apart as they are published.
  """

  def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
    shape = (config.position_kernel, config.width // config.position_groups, config.width)
    direction = nnx.initializers.normal(0.02)(rngs.params(), shape)
    self.direction = parameter(direction, (None, None, "embed"))
    self.gain = parameter(jnp.sqrt(jnp.sum(direction**2, axis=(1, 2))), (None,))
    self.bias = parameter(jnp.zeros(config.width), ("embed",))
    self.groups = config.position_groups

  def __call__(self, x: Array) -> Array:
    direction = self.direction[...]
    length = jnp.sqrt(jnp.sum(direction**2, axis=(1, 2), keepdims=True))
    kernel = (direction / length * self.gain[...][:, None, None]).astype(x.dtype)
    taps = kernel.shape[0]
    y = jax.lax.conv_general_dilated(
      x,
      kernel,
      (1,),
      [(taps // 2, (taps - 1) // 2)],
      dimension_numbers=_TIME,
      feature_group_count=self.groups,
    )
    return nnx.gelu(y + self.bias[...].astype(x.dtype), approximate=False)


class Wav2Vec2Layer(nnx.Module):
  """Self-attention and feed-forward (GELU), each with a norm before or after."""

  def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
    width = config.width
    dense = functools.partial(Linear, dtype=jnp.dtype(config.dtype), rngs=rngs)
    self.heads, self.norm_first = config.heads, config.layer_norm
    self.query, self.key, self.value = (
      dense(width, width, axes=("embed", "heads")) for _ in range(3)
    )
    self.out = dense(width, width, axes=("heads", "embed"))
    self.norm = LayerNorm(width, epsilon=EPSILON)
    self.up = dense(width, config.hidden, axes=("embed", "mlp"))
    self.down = dense(config.hidden, width, axes=("mlp", "embed"))
    self.feed_norm = LayerNorm(width, epsilon=EPSILON)

  def __call__(self, x: Array) -> Array:
    if self.norm_first:
      x = x + self._attend(self.norm(x))
      return x + self._feed(self.feed_norm(x))
    x = self.norm(x + self._attend(x))
    return self.feed_norm(x + self._feed(x))

  def _attend(self, x: Array) -> Array:
    query, key, value = (
      rearrange(project(x), "b s (k d) -> b s k d", k=self.heads)
      for project in (self.query, self.key, self.value)
    )
    return self.out(rearrange(attend(query, key, value), "b s k d -> b s (k d)"))

  def _feed(self, x: Array) -> Array:
    return self.down(nnx.gelu(self.up(x), approximate=False))


class Wav2Vec2Encoder(nnx.Module):
  """Waveform [B, S], mono 16 kHz -> all hidden states [B, S50, layers + 1, width], 50 a second.

  The first is what enters the layers; with `layer_norm` the last has passed the final norm, as the
  `last_hidden_state` of transformers has. `normalise_waveform` comes before.
  """

  def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
    self.config = config
    norms = ["layer" if config.layer_norm else "none"] * len(config.kernels)
    norms[0] = "layer" if config.layer_norm else "group"
    sizes = zip(config.kernels, config.strides, norms, strict=True)
    self.convolutions = nnx.List(
      WaveConv(config.channels if i else 1, *size, config, rngs=rngs)
      for i, size in enumerate(sizes)
    )
    self.project_norm = LayerNorm(config.channels, epsilon=EPSILON)
    self.project = Linear(
      config.channels,
      config.width,
      axes=(None, "embed"),
      dtype=jnp.dtype(config.dtype),
      rngs=rngs,
    )
    self.position = PositionalConv(config, rngs=rngs)
    self.norm = LayerNorm(config.width, epsilon=EPSILON)
    self.layers = _stack(config, rngs)

  def __call__(self, waveform: Array) -> Array:
    if not self.config.features(waveform.shape[1]):
      raise ValueError(f"waveform: found {waveform.shape[1]} samples, too few for one feature")
    x = waveform[..., None].astype(self.config.dtype)
    for convolution in self.convolutions:
      x = convolution(x)
    x = self.project(self.project_norm(x))
    x = x + self.position(x)
    if not self.config.layer_norm:
      x = self.norm(x)
    graphdef, stacked = nnx.split(self.layers)

    def run_layer(x: Array, state: nnx.State) -> tuple[Array, Array]:
      return nnx.merge(graphdef, state)(x), x

    last, before = jax.lax.scan(run_layer, x, stacked)
    if self.config.layer_norm:
      last = self.norm(last)
    return jnp.moveaxis(jnp.concatenate([before, last[None]]), 0, 2)


def _stack(config: Wav2Vec2Config, rngs: nnx.Rngs) -> Wav2Vec2Layer:
  """All layers as one module whose parameters have a leading `layers` axis."""

  @nnx.split_rngs(splits=config.layers)
  @nnx.vmap(axis_size=config.layers, transform_metadata={nnx.PARTITION_NAME: "layers"})
  def build(rngs: nnx.Rngs) -> Wav2Vec2Layer:
    return Wav2Vec2Layer(config, rngs=rngs)

  return build(rngs)


def streamed_states(encoder: Wav2Vec2Encoder, waveform: Array) -> Array:
  """Hidden states in LPM 1.0's windows: two seconds of past, one new, a window every second.

  What a live stream can hear, so that training hears the same. The time before the start is
  silence; a last, partial second is filled with silence.

  Shapes: waveform [B, S] -> [B, 50 * ceil(S / 16000), layers + 1, width].
  """
  batch, samples = waveform.shape
  seconds = -(-samples // SAMPLE_RATE)
  past = PAST_SECONDS * SAMPLE_RATE + _OVERHANG
  padded = jnp.pad(waveform, ((0, 0), (past, seconds * SAMPLE_RATE - samples)))
  index = np.arange(seconds)[:, None] * SAMPLE_RATE + np.arange(past + NEW_SECONDS * SAMPLE_RATE)
  windows = rearrange(padded[:, index], "b n s -> (b n) s")
  states = encoder(normalise_waveform(windows))
  new = states[:, -FEATURES_PER_SECOND * NEW_SECONDS :]
  return rearrange(new, "(b n) s l d -> b (n s) l d", b=batch)


class AudioAdapter(nnx.Module):
  """Hidden states of wav2vec2 -> audio tokens [B, F, 4, D_audio], one a video frame; trained.

  A learned mixture of the hidden states, then each frame reads the five features around its middle
  (100 ms). Latent frame k holds video frames 4k-3 .. 4k; those before frame 0 repeat it.

  Args:
    encoder: sizes of the encoder whose hidden states come in.
    width: D_audio.
    fps: video frames per second.
  """

  REACH = 2  # features each way

  def __init__(self, encoder: Wav2Vec2Config, width: int, *, fps: int = 24, rngs: nnx.Rngs):
    self.mixture = parameter(jnp.zeros(encoder.layers + 1), (None,))
    taps = (2 * self.REACH + 1) * encoder.width
    fp32 = dict(dtype=jnp.float32, rngs=rngs)
    self.read = Linear(taps, width, axes=(None, "audio"), **fp32)
    self.project = Linear(width, width, axes=("audio", None), **fp32)
    self.norm = LayerNorm(width)
    self.null = parameter(nnx.initializers.normal(0.02)(rngs.params(), (width,)), ("audio",))
    self.fps = fps

  def __call__(self, states: Array, latents: int) -> Array:
    """States [B, S50, layers + 1, width] from video frame 0 on -> tokens of `latents` frames."""
    mixed = jnp.einsum("bsld,l->bsd", states, jax.nn.softmax(self.mixture[...]))
    frames = np.maximum(np.arange(latents * FRAMES_PER_LATENT) - (FRAMES_PER_LATENT - 1), 0)
    middle = np.floor((frames + 0.5) * FEATURES_PER_SECOND / self.fps).astype(int)
    index = middle[:, None] + np.arange(-self.REACH, self.REACH + 1)
    index = np.clip(index, 0, states.shape[1] - 1)
    taps = rearrange(mixed[:, index], "b t r d -> b t (r d)")
    tokens = self.norm(self.project(nnx.gelu(self.read(taps))))
    return rearrange(tokens, "b (f a) d -> b f a d", a=FRAMES_PER_LATENT)
