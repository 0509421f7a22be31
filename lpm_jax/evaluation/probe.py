"""The probe: a small network that reads pose, hidden attributes and style back from single frames.

It is the measuring instrument of every puppet metric, and its own error on held-out renders is printed
beside what it measures.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.puppets.pose import POSE_FIELDS
from lpm_jax.models.layers import Array

CHUNK = 73


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Sizes of the probe.

  Args:
    attributes: names of the hidden attributes it reads, one logit each.
    styles: style names it tells apart.
    widths: channels at 32x32, 16x16, 8x8 and 4x4.
    hidden: units of the last layer before the heads.
  """

  attributes: tuple[str, ...]
  styles: tuple[str, ...]
  widths: tuple[int, int, int, int] = (24, 48, 96, 128)
  hidden: int = 160
  size: int = 64


class Probe(nnx.Module):
  """Frames float32 [B, 64, 64, 3] in [-1, 1] -> pose [B, 14], attributes [B, A], style [B, S] (logits)."""

  def __init__(self, config: ProbeConfig, *, rngs: nnx.Rngs):
    self.config = config
    channels, blocks = 3, []
    for level, width in enumerate(config.widths):
      kernel = 5 if level == 0 else 3
      blocks.append(_Block(channels, width, kernel=kernel, strides=2, rngs=rngs))
      if level:
        blocks.append(_Block(width, width, kernel=3, strides=1, rngs=rngs))
      channels = width
    self.blocks = nnx.List(blocks)
    # Positions matter (a gaze is a place), so the 4x4 map is flattened, not pooled, after thinning.
    self.thin = _Block(channels, channels // 2, kernel=1, strides=1, rngs=rngs)
    cells = (config.size // 2 ** len(config.widths)) ** 2
    self.hidden = nnx.Linear(cells * channels // 2, config.hidden, rngs=rngs)
    self.pose = nnx.Linear(config.hidden, len(POSE_FIELDS), rngs=rngs)
    self.attributes = nnx.Linear(config.hidden, len(config.attributes), rngs=rngs)
    self.style = nnx.Linear(config.hidden, len(config.styles), rngs=rngs)

  def __call__(self, frames_bhwc: Array) -> dict[str, Array]:
    x = frames_bhwc
    for block in self.blocks:
      x = block(x)
    x = nnx.gelu(self.hidden(self.thin(x).reshape(x.shape[0], -1)))
    return {"pose": self.pose(x), "attributes": self.attributes(x), "style": self.style(x)}


class _Block(nnx.Module):
  """Convolution, group norm, GELU; adds its input where the shapes agree."""

  def __init__(self, inputs: int, outputs: int, *, kernel: int, strides: int, rngs: nnx.Rngs):
    self.conv = nnx.Conv(inputs, outputs, (kernel, kernel), strides, use_bias=False, rngs=rngs)
    self.norm = nnx.GroupNorm(outputs, num_groups=8, rngs=rngs)
    self.residual = inputs == outputs and strides == 1

  def __call__(self, x: Array) -> Array:
    y = nnx.gelu(self.norm(self.conv(x)))
    return x + y if self.residual else y


@dataclasses.dataclass(frozen=True)
class Reading:
  """What the probe reads in one video: pose float32 [T, 14]; attributes {name: probability [T]}."""

  pose: np.ndarray
  attributes: dict[str, np.ndarray]
  style: np.ndarray


class ProbeReader:
  """Reads whole videos with one compiled program of a fixed number of frames."""

  def __init__(self, probe: Probe, chunk: int = CHUNK):
    self.config = probe.config
    self.chunk = chunk
    graphdef, self._state = nnx.split(probe)

    @jax.jit
    def read(state: nnx.State, frames_u8: Array) -> dict[str, Array]:
      out = nnx.merge(graphdef, state)(frames_u8.astype(jnp.float32) / 127.5 - 1.0)
      return out | {
        "attributes": jax.nn.sigmoid(out["attributes"]),
        "style": jax.nn.softmax(out["style"]),
      }

    self._read = read

  def __call__(self, frames: np.ndarray) -> Reading:
    """Frames uint8 [T, 64, 64, 3] -> Reading. Raises ValueError for another shape or type."""
    size = self.config.size
    if frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3) or not len(frames):
      raise ValueError(
        f"probe: frames: found {frames.dtype} {frames.shape}, expected uint8 [T, {size}, {size}, 3]"
      )
    parts = []
    for start in range(0, len(frames), self.chunk):
      part = frames[start : start + self.chunk]
      short = self.chunk - len(part)
      padded = np.pad(part, ((0, short), (0, 0), (0, 0), (0, 0)), mode="edge")
      out = jax.device_get(self._read(self._state, padded))
      parts.append({name: value[: len(part)] for name, value in out.items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = self.config.attributes
    attributes = {name: joined["attributes"][:, i] for i, name in enumerate(names)}
    return Reading(pose=joined["pose"], attributes=attributes, style=joined["style"])
