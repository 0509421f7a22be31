"""Training of the probe on random faces of random characters, rendered once.

Clips seldom turn to the side or open the mouth with every hidden attribute, so the probe learns
from poses drawn over the whole range instead. It is an instrument and has to read every style, so
it is trained on the held-out style too (the generator never is); its characters are the train
seeds, and `held_out_frames` draws others to measure its own error.
"""

import dataclasses
import os
import pathlib
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.puppets.character import (
  ALL_STYLES,
  FIRST_HELDOUT_SEED,
  HIDDEN,
  TRAIN_SEEDS,
  character_params,
  sample_character,
  visible_attributes,
)
from data_pipelines.puppets.character import attributes as true_attributes
from data_pipelines.puppets.pose import POSE_FIELDS, POSE_INDEX
from data_pipelines.puppets.render import render
from lpm_jax.evaluation import metrics
from lpm_jax.evaluation.probe import Probe, ProbeConfig, read_video
from lpm_jax.models.pixels import from_pixels

POSES_PER_CHARACTER = 8  # the renderer draws chunks of eight
HELD_OUT_SEED = FIRST_HELDOUT_SEED + 900_000  # characters of no clip of any split
RANGES = {
  "mouth_open": (0.0, 1.0),
  "mouth_width": (-1.0, 1.0),
  "smile": (-1.0, 1.0),
  "brow": (-1.0, 1.0),
  "frown": (0.0, 1.0),
  "nose_wrinkle": (0.0, 1.0),
  "blink": (0.0, 1.0),
  "gaze_x": (-1.0, 1.0),
  "gaze_y": (-1.0, 1.0),
  "yaw": (-1.5, 1.5),
  "pitch": (-0.4, 0.4),
  "roll": (-0.35, 0.35),
  "lean_x": (-1.0, 1.0),
  "lean_y": (-1.0, 1.0),
}

# Lips are judged by small openings, nods by a few hundredths of the pitch range; gaze, smile and
# frown are a pixel or two of a face and without more weight are not learned at all.
IMPORTANCE = {
  "mouth_open": 4.0,
  "pitch": 2.0,
  **dict.fromkeys(("gaze_x", "gaze_y", "smile", "mouth_width", "frown"), 4.0),
}


def random_poses(rng: np.random.Generator, count: int) -> np.ndarray:
  """Poses float32 [count, 14]: each field anywhere in its range, near rest or at rest in turn.

  Closed eyes are half as frequent, for they hide the gaze; a quarter of the brows are raised high,
  for only those show wrinkles.
  """
  pose = np.zeros((count, len(POSE_FIELDS)), np.float32)
  for name, (low, high) in RANGES.items():
    anywhere = rng.uniform(low, high, count)
    near = np.clip(rng.normal(0, 0.12 * (high - low), count), low, high)
    pick = rng.integers(0, 6 if name == "blink" else 3, count)
    pose[:, POSE_INDEX[name]] = np.select([pick == 0, pick == 1], [anywhere, near], 0.0)
  raised = rng.uniform(size=count) < 0.25
  pose[raised, POSE_INDEX["brow"]] = rng.uniform(0.6, 1.0, int(raised.sum()))
  return pose


def draw_frames(first_seed: int, characters: int, *, style: str | None = None) -> dict:
  """Renders POSES_PER_CHARACTER random poses of each of `characters` puppets, styles in turn.

  Returns arrays over N frames: frames uint8 [N, 64, 64, 3], pose float32 [N, 14], attributes and
  visible uint8 [N, A], style int32 [N].
  """
  parts = []
  for i in tqdm(range(characters), desc="render faces", unit="puppet", disable=characters < 64):
    seed = first_seed + i
    character = sample_character(seed, style=style or ALL_STYLES[i % len(ALL_STYLES)])
    pose = random_poses(np.random.default_rng([seed, 0x9B0B]), POSES_PER_CHARACTER)
    truth, visible = true_attributes(character), visible_attributes(pose)
    row = np.array([truth[name] for name in HIDDEN], np.uint8)
    parts.append(
      {
        "frames": render(character_params(character), pose),
        "pose": pose,
        "attributes": np.repeat(row[None], len(pose), 0),
        "visible": np.stack([visible[name] for name in HIDDEN], 1).astype(np.uint8),
        "style": np.full(len(pose), truth["style"], np.int32),
      }
    )
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cached_frames(folder: str | os.PathLike, characters: int) -> dict[str, np.ndarray]:
  """`draw_frames` of the first train seeds, drawn once, memory-mapped, written whole or not at all.

  Raises ValueError for more characters than train seeds.
  """
  if characters > len(TRAIN_SEEDS):
    raise ValueError(f"characters: found {characters}, expected at most {len(TRAIN_SEEDS)}")
  folder = pathlib.Path(folder) / f"faces-{characters}"
  if not folder.exists():
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
      for name, array in draw_frames(TRAIN_SEEDS.start, characters).items():
        np.save(temporary / f"{name}.npy", array)
      os.replace(temporary, folder)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def degrade(frames_bhwc: jax.Array, key: jax.Array) -> jax.Array:
  """Blur, noise and colour jitter per frame, so that decoded frames read as well as renders.

  No shift: where the head is, is part of what is measured. Shapes: [B, H, W, 3] in [-1, 1], kept.
  """
  blur_key, gain_key, offset_key, sigma_key, noise_key = jax.random.split(key, 5)
  batch = frames_bhwc.shape[0]

  def per_frame(k: jax.Array, low: float, high: float, channels: int = 1) -> jax.Array:
    return jax.random.uniform(k, (batch, 1, 1, channels), minval=low, maxval=high)

  blurred = frames_bhwc
  for axis in (1, 2):
    sides = jnp.roll(blurred, 1, axis) + jnp.roll(blurred, -1, axis)
    blurred = 0.5 * blurred + 0.25 * sides
  # A third of the frames stay sharp.
  share = jnp.maximum(per_frame(blur_key, -0.5, 1.0), 0.0)
  x = frames_bhwc + share * (blurred - frames_bhwc)
  x = x * per_frame(gain_key, 0.9, 1.1, 3) + per_frame(offset_key, -0.08, 0.08, 3)
  sigma = jnp.maximum(per_frame(sigma_key, -0.05, 0.1), 0.0)
  return jnp.clip(x + sigma * jax.random.normal(noise_key, x.shape), -1.0, 1.0)


class ProbeTask:
  """Task of the training loop: frames -> pose, attributes, style.

  Args:
    config: a training config; `data.folder` is where the rendered frames are cached,
      `data.characters` how many train characters are drawn, eight frames each, `model` holds
      fields of ProbeConfig other than the names.
  """

  def __init__(self, config: ConfigDict):
    self.folder, self.characters = config.data.folder, config.data.characters
    self.config = ProbeConfig(attributes=tuple(HIDDEN), styles=ALL_STYLES, **config.model.to_dict())

  def config_dict(self) -> dict:
    return dataclasses.asdict(self.config)

  def build(self, rngs: nnx.Rngs) -> Probe:
    return Probe(self.config, rngs=rngs)

  def dataset(self, seed: int) -> grain.MapDataset:
    """Single frames in order; every draw is the renderer's, so `seed` changes nothing here."""
    del seed
    arrays = cached_frames(self.folder, self.characters)
    size = len(arrays["pose"])
    return grain.MapDataset.range(size).map(
      lambda i: {name: np.asarray(array[i]) for name, array in arrays.items()}
    )

  def loss(self, model: Probe, batch: dict, key: jax.Array, step: jax.Array):
    """Weighted squared error of the pose, cross-entropy of visible attributes and of the style.

    Each pose field counts relative to its range and by IMPORTANCE; gaze counts as far as the eye
    is open and turned to the viewer.
    """
    del step
    frames = degrade(from_pixels(batch["frames"]), key)
    out = model(frames)
    span = jnp.array([RANGES[name][1] - RANGES[name][0] for name in POSE_FIELDS])
    error = jnp.square((out["pose"] - batch["pose"]) / span)
    weights = jnp.array([IMPORTANCE.get(name, 1.0) for name in POSE_FIELDS])
    pose_loss = (error * weights * _readable(batch["pose"])).mean()
    logits, visible = out["attributes"], batch["visible"].astype(jnp.float32)
    entropy = optax.sigmoid_binary_cross_entropy(logits, batch["attributes"].astype(jnp.float32))
    attribute_loss = (entropy * visible).sum() / jnp.maximum(visible.sum(), 1.0)
    style_loss = optax.softmax_cross_entropy_with_integer_labels(
      out["style"], batch["style"]
    ).mean()
    loss = 40.0 * pose_loss + attribute_loss + 0.1 * style_loss
    right = (logits > 0) == (batch["attributes"] > 0)
    return loss, {
      "pose_loss": pose_loss,
      "attribute_loss": attribute_loss,
      "style_loss": style_loss,
      "attribute_accuracy": (right * visible).sum() / jnp.maximum(visible.sum(), 1.0),
    }


def _readable(pose: jax.Array) -> jax.Array:
  """How much of each field [N, 14] can be seen: 1, less for gaze behind lids and far turns."""
  open_eyes = 1.0 - pose[:, POSE_INDEX["blink"]]
  frontal = jnp.clip(1.5 - jnp.abs(pose[:, POSE_INDEX["yaw"]]), 0.0, 1.0)
  face = ("mouth_open", "mouth_width", "smile", "brow", "frown", "nose_wrinkle", "blink")
  columns = [
    open_eyes * frontal if name.startswith("gaze") else frontal if name in face else 1.0
    for name in POSE_FIELDS
  ]
  return jnp.stack([jnp.broadcast_to(column, open_eyes.shape) for column in columns], axis=1)


def own_error(probe: Probe, characters: int = 40) -> dict[str, dict]:
  """The probe's error per style on renders of characters it never saw, whole pose range.

  Returns {style: {"pose": {field: {"mae", "correlation"}}, "attributes": {name: accuracy where
  visible}}}; face fields are scored where |yaw| < 0.7, for behind that they cannot be seen.
  """
  report = {}
  for i, style in enumerate(ALL_STYLES):
    data = draw_frames(HELD_OUT_SEED + 1000 * i, characters, style=style)
    reading = read_video(probe, data["frames"])
    frontal = np.abs(data["pose"][:, POSE_INDEX["yaw"]]) < 0.7
    fields = metrics.field_errors(reading.pose[frontal], data["pose"][frontal])
    whole = metrics.field_errors(reading.pose, data["pose"])
    fields |= {name: whole[name] for name in ("yaw", "pitch", "roll", "lean_x", "lean_y")}
    right = np.stack(
      [
        (reading.attributes[name] > 0.5) == data["attributes"][:, a]
        for a, name in enumerate(HIDDEN)
      ],
      1,
    )
    seen = data["visible"].astype(bool)
    accuracy = {name: metrics.mean(right[seen[:, a], a]) for a, name in enumerate(HIDDEN)}
    report[style] = {"pose": fields, "attributes": accuracy}
  return report
