"""The TFDS face of the puppet data set; importing it imports TensorFlow.

`builder.build` and `builder.puppet_source` are the ways in.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_pipelines.clip import Clip, ClipError
from data_pipelines.puppets import twins
from data_pipelines.puppets.builder import puppet_clip

_STRINGS = ("clip_id", "character_id", "style", "source", "consent", "text")
_RAW = tfds.features.Encoding.BYTES


class Puppets(tfds.core.GeneratorBasedBuilder):
  """Procedural characters that speak, listen and idle, with exact truth for every frame.

  Args:
    recipe: clips (counts by split), seed, frames and size; kept in the metadata of the data set.
  """

  VERSION_NAME = "1.0.0"
  VERSION = tfds.core.Version(VERSION_NAME)
  RELEASE_NOTES = {VERSION_NAME: "First version."}
  pkg_dir_path = None

  def __init__(self, *, recipe: dict[str, Any] | None = None, **kwargs):
    self.recipe = recipe or {}
    super().__init__(file_format="array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    tensor = tfds.features.Tensor
    size = self.recipe.get("size", 64)
    pictures = tensor(shape=(None, size, size, 3), dtype=np.uint8, encoding=_RAW)
    features = {name: tfds.features.Text() for name in (*_STRINGS, "attributes", "events")}
    features |= {
      "fps": tfds.features.Scalar(dtype=np.float32),
      "video": pictures,
      "speak_audio": tensor(shape=(None,), dtype=np.float32, encoding=_RAW),
      "listen_audio": tensor(shape=(None,), dtype=np.float32, encoding=_RAW),
      "state": tensor(shape=(None,), dtype=np.int8, encoding=_RAW),
      "emotion": tensor(shape=(None,), dtype=np.int8, encoding=_RAW),
      "pose": tensor(shape=(None, 14), dtype=np.float32, encoding=_RAW),
      "references": pictures,
      "reference_kind": tensor(shape=(None,), dtype=np.int32, encoding=_RAW),
      "reference_label": tensor(shape=(None,), dtype=np.int32, encoding=_RAW),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(features),
      license="Apache-2.0",
      disable_shuffling=True,  # clip i of the data set is puppet_clip(i)
      metadata=tfds.core.MetadataDict(self.recipe),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    return {split: self._generate_examples(split, n) for split, n in self.recipe["clips"].items()}

  def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    recipe = self.recipe
    kind, options = recipe.get("kind"), {"seed": recipe["seed"], "size": recipe["size"]}
    for index in tqdm(range(count), desc=f"puppets {split}", unit="clip", mininterval=1):
      if kind == twins.KIND:
        clip = twins.twin_clip(index, split, recipe["frames"], **options)
      else:
        clip = puppet_clip(index, split, kind, recipe["frames"], **options)
      yield index, to_features(clip)


def to_features(clip: Clip) -> dict[str, Any]:
  """A clip as an example of `Puppets`."""
  arrays = ("video", "speak_audio", "listen_audio", "state")
  arrays += ("references", "reference_kind", "reference_label")
  return {name: getattr(clip, name) for name in (*_STRINGS, "fps", *arrays)} | {
    "pose": clip.truth["pose"],
    "emotion": clip.truth["emotion"],
    "attributes": json.dumps(clip.truth["attributes"]),
    "events": json.dumps(clip.truth["events"]),
  }


def from_features(record: dict[str, Any], file: str) -> Clip:
  """The checked clip of an example. Raises ClipError naming `file` when a field is wrong."""
  fields = dict(record)
  try:
    texts = {name: _decode(fields.pop(name)) for name in (*_STRINGS, "attributes", "events")}
    truth = {
      "pose": np.asarray(fields.pop("pose")),
      "emotion": np.asarray(fields.pop("emotion")),
      "attributes": json.loads(texts.pop("attributes")),
      "events": json.loads(texts.pop("events")),
    }
    fps = float(fields.pop("fps"))
  except (KeyError, ValueError) as error:
    raise ClipError(f"{file}: not a puppet clip: {error}") from error
  return Clip(**texts, **fields, fps=fps, truth=truth, file=file)


def prepare(builder: Puppets):
  """Generates the data set; TFDS writes into a folder beside the target, then renames it."""
  tfds.disable_progress_bar()  # counts files; the clips have a bar of their own
  with contextlib.redirect_stdout(io.StringIO()):  # it would speak of a download
    builder.download_and_prepare(file_format="array_record")


def read_only(folder: os.PathLike) -> tfds.core.DatasetBuilder:
  """The builder of a data set on disk, without the code that made it."""
  return tfds.builder_from_directory(os.fspath(folder))


def _decode(text: bytes | str) -> str:
  return text.decode() if isinstance(text, bytes) else text
