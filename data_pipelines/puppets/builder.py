"""Puppet clips: one at a time from an index, or as an ArrayRecord data set built with TFDS."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.clip import Clip, ClipError
from data_pipelines.puppets import references
from data_pipelines.puppets.character import (
  FIRST_HELDOUT_SEED,
  HELD_OUT_STYLE,
  STYLES,
  TRAIN_SEEDS,
  Character,
  attributes,
  character_params,
  sample_character,
)
from data_pipelines.puppets.render import render
from data_pipelines.puppets.scene import (
  FPS,
  SCENE_KINDS,
  SPLITS,
  Scene,
  compose_scene,
  window,
)

SOURCE = "puppets"
CONSENT = "synthetic"
KIND_SHARES = {"speak": 0.35, "listen": 0.20, "idle": 0.25, "dialogue": 0.20}
TRAIN_CHARACTERS = 800
# This share of the training clips starts in the middle of a longer scene, for models that continue
# a video.
EXCERPT_SHARE = 0.2
_DATA_NAME = "puppets"


def puppet_character(seed: int, split: str) -> Character:
  """The character of a draw: a pool of 800 in training, one of its own for every held-out seed.

  Raises ValueError for a split that is not in SPLITS.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
  if split in ("train", "validation"):
    pool = seed % TRAIN_CHARACTERS
    return sample_character(TRAIN_SEEDS[pool], style=STYLES[pool % len(STYLES)])
  if split == "heldout_style":
    return sample_character(FIRST_HELDOUT_SEED + 500_000 + seed, style=HELD_OUT_STYLE)
  return sample_character(FIRST_HELDOUT_SEED + seed, style=STYLES[seed % len(STYLES)])


def puppet_clip(
  index: int,
  split: str,
  kind: str | None = None,
  frames: int = 73,
  *,
  seed: int = 0,
  size: int = 64,
  actions: tuple[str, ...] | None = None,
  emotion: str | tuple[str, str] | None = None,
  all_references: bool = False,
) -> Clip:
  """Clip `index` of a split; the same arguments give the same clip.

  Args:
    split: one of scene.SPLITS. "heldout" has characters, voices and sentences of its own,
      "heldout_style" a style of its own as well.
    kind: one of scene.SCENE_KINDS, drawn by KIND_SHARES when not given.
    frames: 1 + 4k video frames at 24 per second.
    seed: of the whole data set.
    size: height and width of the pictures in pixels.
    actions, emotion: see `compose_scene`.
    all_references: every view and expression instead of a drawn subset.

  `truth` holds pose float32 [T, 14], emotion int8 [T], attributes (name -> value) and events (a
  list of dicts: kind, start_s, end_s, detail). Raises ValueError for an unknown split, kind, action
  or emotion.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
  rng = np.random.default_rng((seed, index, SPLITS.index(split), 0xC11))
  free = kind is None
  if free:
    kind = str(rng.choice(SCENE_KINDS, p=[KIND_SHARES[name] for name in SCENE_KINDS]))
  scene_seed = int(rng.integers(2**31))
  excerpt = free and split == "train" and actions is None and rng.random() < EXCERPT_SHARE
  if excerpt:
    long = compose_scene(scene_seed, kind, split, 2 * frames, emotion=emotion)
    scene = window(long, int(rng.integers(8, frames + 1)), frames)
  else:
    scene = compose_scene(scene_seed, kind, split, frames, actions=actions, emotion=emotion)
  draw = int(rng.integers(2**31)) if split in ("train", "validation") else index
  character = puppet_character(draw, split)
  chosen = references.ALL_REFERENCES if all_references else references.draw_references(rng)
  return assemble(f"{split}-{seed}-{index:06d}", scene, character, chosen, rng, size)


def assemble(
  clip_id: str,
  scene: Scene,
  character: Character,
  chosen: tuple[tuple[int, int], ...],
  rng: np.random.Generator,
  size: int,
) -> Clip:
  """Draws a scene with its character and the chosen references, (kind, label) each."""
  frames = len(scene.pose)
  poses = [references.reference_pose(kind, label, rng) for kind, label in chosen]
  # One call draws video and references: the renderer works in chunks of frames.
  pictures = render(character_params(character), np.concatenate([scene.pose, *poses]), size)
  kinds, labels = np.array(chosen, np.int32).T
  return Clip(
    clip_id=clip_id,
    character_id=character.character_id,
    style=character.style,
    source=SOURCE,
    consent=CONSENT,
    fps=FPS,
    text=scene.text,
    video=pictures[:frames],
    speak_audio=scene.speak_audio,
    listen_audio=scene.listen_audio,
    state=scene.state,
    references=pictures[frames:],
    reference_kind=np.ascontiguousarray(kinds),
    reference_label=np.ascontiguousarray(labels),
    truth={
      "pose": scene.pose,
      "emotion": scene.emotion,
      "attributes": attributes(character),
      "events": [dataclasses.asdict(event) for event in scene.events],
    },
  )


def build(
  data_dir: str | os.PathLike,
  clips: dict[str, int],
  seed: int = 0,
  frames: int = 73,
  size: int = 64,
  kind: str = "",
) -> None:
  """Builds the data set under `data_dir`/puppets: `clips` says how many for each split.

  All are of one `kind` of scene, or drawn by KIND_SHARES when it is "". For "twins" see `twins.py`.

  Shows progress. Leaves nothing half-written: TFDS writes beside the target and renames at the end.
  Does nothing when the same data set is there already. Raises ValueError for an unknown split, a
  count below 1, or when another data set (other counts, seed, frames, size or kind) lies at the
  target; OSError where `data_dir` cannot be written.
  """
  for split, count in clips.items():
    if split not in SPLITS or count < 1:
      raise ValueError(f"clips: found {split!r}: {count}, expected counts >= 1 of {SPLITS}")
  if not clips:
    raise ValueError(f"clips: found no split, expected counts >= 1 of {SPLITS}")
  folder = pathlib.Path(data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  if kind and kind not in (*SCENE_KINDS, "twins"):
    raise ValueError(f"kind: found {kind!r}, expected one of {SCENE_KINDS}, 'twins' or none")
  wanted = {"clips": dict(clips), "seed": seed, "frames": frames, "size": size}
  wanted |= {"kind": kind} if kind else {}
  with _quiet_tensorflow():
    dataset = _dataset()
    builder = dataset.Puppets(data_dir=str(folder), recipe=wanted)
    if builder.is_prepared():
      found = dict(builder.info.metadata or {})
      if found != wanted:
        raise ValueError(f"{builder.data_path}: holds the data set {found}, wanted {wanted}")
      return
    try:
      dataset.prepare(builder)
    except BaseException:
      for leftover in pathlib.Path(builder.data_path).parent.glob("*.incomplete*"):
        shutil.rmtree(leftover, ignore_errors=True)
      raise


def puppet_source(data_dir: str | os.PathLike, split: str) -> "PuppetSource":
  """The clips of a data set that `build` wrote.

  Raises FileNotFoundError where there is none, ValueError for a split it does not have, and
  ClipError naming the file for a record file that is damaged.
  """
  with _quiet_tensorflow():
    dataset = _dataset()
    folder = pathlib.Path(data_dir) / _DATA_NAME / dataset.Puppets.VERSION_NAME
    if not (folder / "dataset_info.json").is_file():
      raise FileNotFoundError(
        f"{folder}: no puppet data set here; build one with `lpm data puppets`"
      )
    return PuppetSource(folder, split)


class PuppetSource:
  """Random access to checked clips: len, [index], iteration; can be pickled."""

  def __init__(self, folder: pathlib.Path, split: str):
    self.folder, self.split = folder, split
    self._open()

  def _open(self):
    builder = _dataset().read_only(self.folder)
    if self.split not in builder.info.splits:
      raise ValueError(
        f"{self.folder}: no split {self.split!r}, expected one of {sorted(builder.info.splits)}"
      )
    self.files = [pathlib.Path(name) for name in builder.info.splits[self.split].filepaths]
    self._ends = np.cumsum(builder.info.splits[self.split].shard_lengths)
    missing = [file for file in self.files if not file.is_file()]
    if missing:
      raise ClipError(f"{missing[0]}: a record file of the data set is missing")
    try:
      self._records = builder.as_data_source(split=self.split)
      count = len(self._records)
    except Exception as error:  # the readers raise many kinds
      raise ClipError(f"{self._damaged()}: not a whole ArrayRecord file: {error}") from error
    if count != self._ends[-1]:
      raise ClipError(f"{self._damaged()}: found {count} clips, expected {self._ends[-1]}")

  def _damaged(self) -> pathlib.Path:
    """The first file that cannot be opened, else the folder."""
    from array_record.python import array_record_module

    lengths = np.diff(self._ends, prepend=0)
    for file, length in zip(self.files, lengths, strict=True):
      try:
        reader = array_record_module.ArrayRecordReader(str(file))
        if reader.num_records() != length:
          return file
        reader.read_all()
      except (RuntimeError, ValueError, IndexError):
        return file
    return self.folder

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Clip:
    if not 0 <= index < len(self):
      raise IndexError(f"clip {index} of {len(self)}")
    file = self.files[int(np.searchsorted(self._ends, index, side="right"))]
    try:
      record = self._records[index]
    except Exception as error:  # the readers raise many kinds
      raise ClipError(f"{file}: the record of clip {index} cannot be read: {error}") from error
    return _dataset().from_features(record, str(file))

  def __iter__(self) -> Iterator[Clip]:
    return (self[i] for i in range(len(self)))

  def __repr__(self) -> str:
    return f"PuppetSource({len(self)} clips in {self.folder}, split {self.split})"

  def __getstate__(self) -> dict[str, Any]:
    return {"folder": self.folder, "split": self.split}

  def __setstate__(self, state: dict[str, Any]):
    self.__dict__ |= state
    with _quiet_tensorflow():
      self._open()


def _dataset() -> types.ModuleType:
  """The module that imports TFDS, and with it TensorFlow, only when a data set is touched."""
  try:
    from data_pipelines.puppets import dataset
  except ImportError as error:
    raise ImportError(
      f"puppet data sets need the packages of the extra `data` ({error.name} is missing): "
      "pip install 'lpm_jax[data]'"
    ) from error
  return dataset


@contextlib.contextmanager
def _quiet_tensorflow():
  """TensorFlow greets on stderr from C++; a data set of pictures needs none of it, and no GPU."""
  before = {
    name: os.environ.get(name) for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")
  }
  verbosity = logging.get_verbosity()
  os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0")
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
    for name, value in before.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value
