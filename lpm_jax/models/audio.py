"""Small audio encoder: waveform -> log-mel -> tokens on the grid of latent frames.

16 kHz and 24 fps have no common hop: mel windows are gathered at rounded positions, four per video
frame. Latent frame k holds video frames 4k-3 .. 4k, as in the VAE; three silent frames stand before
frame 0.
"""

import dataclasses

import jax.numpy as jnp
import librosa
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from lpm_jax.models.layers import LayerNorm, Linear, parameter

SAMPLE_RATE = 16_000
FRAMES_PER_LATENT = 4
MELS_PER_FRAME = 4
WINDOW = 400
FFT = 512


@dataclasses.dataclass(frozen=True)
class AudioConfig:
  """Sizes of the small encoder.

  Args:
    width: D_audio.
    bands: mel bands.
    kernel: video frames that one convolution sees.
    dilations: of the convolutions, one residual layer each; (1, 2, 4) hears 14 frames each way.
    fps: video frames per second.
  """

  width: int = 128
  bands: int = 64
  kernel: int = 5
  dilations: tuple[int, ...] = (1, 2, 4)
  fps: int = 24


def log_mel(waveform: Array, latents: int, config: AudioConfig) -> Array:
  """Log-mel energies, about zero mean and unit scale.

  Args:
    waveform: [B, S] mono 16 kHz in [-1, 1], starting at video frame 0; shorter input is padded with
      silence.
    latents: latent frames F.
    config: bands and frame rate.

  Returns:
    fp32 [B, F * 4, 4 * bands], one row per video frame, three silent frames first.
  """
  rows = latents * FRAMES_PER_LATENT * MELS_PER_FRAME
  hop = SAMPLE_RATE / (config.fps * MELS_PER_FRAME)
  centres = np.round((np.arange(rows) + 0.5) * hop).astype(int)
  index = centres[:, None] + np.arange(WINDOW)  # of the padded waveform: WINDOW / 2 more in front
  lead = round((FRAMES_PER_LATENT - 1) * SAMPLE_RATE / config.fps) + WINDOW // 2
  missing = max(0, int(index.max()) + 1 - lead - waveform.shape[1])
  padded = jnp.pad(waveform.astype(jnp.float32), ((0, 0), (lead, missing)))
  frames = padded[:, index] * np.hanning(WINDOW).astype(np.float32)
  power = jnp.square(jnp.abs(jnp.fft.rfft(frames, FFT)))
  filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT, n_mels=config.bands)
  mel = jnp.log(power @ filters.T.astype(np.float32) + 1e-5)
  return rearrange((mel + 6.0) / 4.0, "b (t m) c -> b t (m c)", m=MELS_PER_FRAME)


class ConvLayer(nnx.Module):
  """Residual 1-D convolution over video frames with GELU, as one matrix product over its taps."""

  def __init__(self, width: int, kernel: int, dilation: int, *, rngs: nnx.Rngs):
    self.norm = LayerNorm(width)
    self.taps = Linear(kernel * width, width, axes=(None, "audio"), dtype=jnp.float32, rngs=rngs)
    self.kernel, self.dilation = kernel, dilation

  def __call__(self, x: Array) -> Array:
    reach = self.kernel // 2 * self.dilation
    frames = x.shape[1]
    padded = jnp.pad(self.norm(x), ((0, 0), (reach, reach), (0, 0)))
    shifts = range(0, 2 * reach + 1, self.dilation)
    taps = jnp.concatenate([padded[:, s : s + frames] for s in shifts], axis=-1)
    return x + nnx.gelu(self.taps(taps))


class AudioEncoder(nnx.Module):
  """Waveform [B, S] -> audio tokens [B, F, 4, D_audio], one token per video frame.

  `null` stands for a dropped track (guidance); silence is zeros, encoded: two different things.
  """

  def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.project = Linear(
      MELS_PER_FRAME * config.bands,
      config.width,
      axes=(None, "audio"),
      dtype=jnp.float32,
      rngs=rngs,
    )
    self.layers = nnx.List(
      [ConvLayer(config.width, config.kernel, d, rngs=rngs) for d in config.dilations]
    )
    self.norm = LayerNorm(config.width)
    self.null = parameter(nnx.initializers.normal(0.02)(rngs.params(), (config.width,)), ("audio",))

  def __call__(self, waveform: Array, latents: int) -> Array:
    x = self.project(log_mel(waveform, latents, self.config))
    for layer in self.layers:
      x = layer(x)
    return rearrange(self.norm(x), "b (f a) d -> b f a d", a=FRAMES_PER_LATENT)
