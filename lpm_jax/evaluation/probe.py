"""The probe: a small network that reads pose, hidden attributes and style back from single frames.

It is the measuring instrument of every puppet metric, and its own error on held-out renders is
printed beside what it measures.
"""

import dataclasses
import functools
import os

import einops
import jax
import numpy as np
from flax import nnx

from data_pipelines.puppets.pose import POSE_FIELDS
from lpm_jax.models.pixels import from_pixels
from lpm_jax.weights import shipped

CHUNK = 73


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Sizes of the probe.

  Args:
    attributes: names of the hidden attributes it reads, one logit each.
    styles: style names it tells apart.
    widths: channels at 16x16, 8x8 and 4x4.
    hidden: units of the last layer before the heads.
    size: height and width of a frame in pixels.
    patch: pixels a side that the first layer sees as channels (on CPU convolutions over full-size
      maps of few channels cost more than all the others).
  """

  attributes: tuple[str, ...]
  styles: tuple[str, ...]
  widths: tuple[int, int, int] = (64, 96, 128)
  hidden: int = 128
  size: int = 64
  patch: int = 4


class Probe(nnx.Module):
  """Frames [B, 64, 64, 3] in [-1, 1] -> pose [B, 14], logits of attributes [B, A], style [B, S]."""

  def __init__(self, config: ProbeConfig, *, rngs: nnx.Rngs):
    self.config = config
    channels, blocks = 3 * config.patch**2, []
    for level, width in enumerate(config.widths):
      blocks.append(_Block(channels, width, kernel=3, strides=2 if level else 1, rngs=rngs))
      blocks.append(_Block(width, width, kernel=3, strides=1, rngs=rngs))
      channels = width
    self.blocks = nnx.List(blocks)
    # Positions matter (a gaze is a place), so the 4x4 map is flattened, not pooled, after thinning.
    self.thin = _Block(channels, channels // 2, kernel=1, strides=1, rngs=rngs)
    cells = (config.size // config.patch // 2 ** (len(config.widths) - 1)) ** 2
    self.hidden = nnx.Linear(cells * channels // 2, config.hidden, rngs=rngs)
    self.pose = nnx.Linear(config.hidden, len(POSE_FIELDS), rngs=rngs)
    self.attributes = nnx.Linear(config.hidden, len(config.attributes), rngs=rngs)
    self.style = nnx.Linear(config.hidden, len(config.styles), rngs=rngs)

  def __call__(self, frames_bhwc: jax.Array) -> dict[str, jax.Array]:
    p = self.config.patch
    x = einops.rearrange(frames_bhwc, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
    for block in self.blocks:
      x = block(x)
    x = nnx.relu(self.hidden(self.thin(x).reshape(x.shape[0], -1)))
    return {"pose": self.pose(x), "attributes": self.attributes(x), "style": self.style(x)}


class _Block(nnx.Module):
  """Convolution, RMS norm over channels, ReLU; adds its input where the shapes agree."""

  def __init__(self, inputs: int, outputs: int, *, kernel: int, strides: int, rngs: nnx.Rngs):
    self.conv = nnx.Conv(inputs, outputs, (kernel, kernel), strides, use_bias=False, rngs=rngs)
    self.norm = nnx.RMSNorm(outputs, rngs=rngs)
    self.residual = inputs == outputs and strides == 1

  def __call__(self, x: jax.Array) -> jax.Array:
    y = nnx.relu(self.norm(self.conv(x)))
    return x + y if self.residual else y


@dataclasses.dataclass(frozen=True)
class Reading:
  """What the probe reads: pose [T, 14], attributes {name: probability [T]}, style [T, S]."""

  pose: np.ndarray
  attributes: dict[str, np.ndarray]
  style: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _read(graphdef: nnx.GraphDef, state: nnx.State, frames_u8: jax.Array) -> dict[str, jax.Array]:
  out = nnx.merge(graphdef, state)(from_pixels(frames_u8))
  probabilities = {
    "attributes": jax.nn.sigmoid(out["attributes"]),
    "style": jax.nn.softmax(out["style"]),
  }
  return out | probabilities


def read_video(probe: Probe, frames: np.ndarray, chunk: int = CHUNK) -> Reading:
  """Reads frames uint8 [T, 64, 64, 3] with one compiled program of `chunk` frames.

  Raises ValueError for another shape or type.
  """
  size = probe.config.size
  if frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3) or not len(frames):
    raise ValueError(
      f"probe: frames: found {frames.dtype} {frames.shape}, expected uint8 [T, {size}, {size}, 3]"
    )
  graphdef, state = nnx.split(probe)
  parts = []
  for start in range(0, len(frames), chunk):
    part = frames[start : start + chunk]
    padded = np.pad(part, ((0, chunk - len(part)), (0, 0), (0, 0), (0, 0)), mode="edge")
    out = jax.device_get(_read(graphdef, state, padded))
    parts.append({name: value[: len(part)] for name, value in out.items()})
  joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  names = probe.config.attributes
  attributes = {name: joined["attributes"][:, i] for i, name in enumerate(names)}
  return Reading(pose=joined["pose"], attributes=attributes, style=joined["style"])


def load_probe(folder: str | os.PathLike = "puppets") -> Probe:
  """The probe of a weights folder (probe.safetensors; "puppets" means the shipped weights)."""
  return shipped.load_built(shipped.weights_file(folder, "probe"), ProbeConfig, Probe)
