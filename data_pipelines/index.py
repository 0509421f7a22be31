"""What is known of the clips in a record file without reading them: a small JSON file beside it.

At the 17B scale a clip has some 40 MB, of which the choice of a training stage's clips needs three
numbers. Written with the records; where it is missing or belongs to another file it is made anew
from the records, which reads them all.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.clip import STATES, Clip, EncodedClip


@dataclasses.dataclass(frozen=True)
class Index:
  """The clips of one or several record files, in order.

  Args:
    states: int64 [clips, len(STATES)], video frames of each clip in each state.
    dtypes: of the clips' latents, sorted; none for clips that are not encoded.
  """

  states: np.ndarray
  dtypes: tuple[str, ...]

  @classmethod
  def of_clips(cls, entries: Sequence[tuple[np.ndarray, str]]) -> "Index":
    """From the `entry` of every clip."""
    states = np.array([row for row, _ in entries], np.int64).reshape(-1, len(STATES))
    return cls(states, tuple(sorted({dtype for _, dtype in entries if dtype})))

  @classmethod
  def joined(cls, parts: Sequence["Index"]) -> "Index":
    """The clips of all parts, one after the other."""
    dtypes = {dtype for part in parts for dtype in part.dtypes}
    return cls(np.concatenate([part.states for part in parts]), tuple(sorted(dtypes)))


def entry(clip: Clip | EncodedClip) -> tuple[np.ndarray, str]:
  """Frames in each state, and the dtype of the latents or ""."""
  dtype = clip.latents.dtype.name if isinstance(clip, EncodedClip) else ""
  return np.bincount(clip.state, minlength=len(STATES)), dtype


def index_path(records: pathlib.Path) -> pathlib.Path:
  """Where the index of a record file lies."""
  return records.with_suffix(".index.json")


def write_index(records: pathlib.Path, index: Index, size: int):
  """Writes the index of a record file of `size` bytes, whole or not at all."""
  path = index_path(records)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  content = {"bytes": size, "latents": index.dtypes, "states": index.states.tolist()}
  try:
    temporary.write_text(json.dumps(content) + "\n")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def read_index(records: pathlib.Path, clips: int) -> Index | None:
  """The index of a record file of so many clips; None where there is none that fits it."""
  try:
    content = json.loads(index_path(records).read_text())
    states = np.array(content["states"], np.int64).reshape(-1, len(STATES))
    fits = content["bytes"] == records.stat().st_size and len(states) == clips
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None
  return Index(states, tuple(content["latents"])) if fits else None
