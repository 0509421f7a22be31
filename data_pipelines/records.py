"""Clips in ArrayRecord files, one safetensors payload a clip; ArrayRecord checksums its chunks."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from array_record.python import array_record_module
from ml_dtypes import bfloat16
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from data_pipelines.clip import Clip, ClipError, EncodedClip

_LATENTS = ("latents", "references")
_KINDS = {"Clip": Clip, "EncodedClip": EncodedClip}


def to_record(clip: Clip | EncodedClip, *, half: bool = False) -> bytes:
  """Bytes of one clip: arrays as safetensors, everything else as JSON in its metadata.

  With `half` the latents of clip and references are rounded to bfloat16; they are read as float32.
  """
  arrays, meta = {}, {"record": type(clip).__name__, "truth": {}, "bfloat16": []}
  for field in dataclasses.fields(clip):
    value = getattr(clip, field.name)
    if isinstance(value, np.ndarray):
      rounded = half and field.name in _LATENTS and value.dtype == np.float32
      arrays[field.name] = np.ascontiguousarray(value.astype(bfloat16) if rounded else value)
    elif field.name == "truth":
      for name, item in value.items():
        if isinstance(item, np.ndarray):
          arrays[f"truth/{name}"] = np.ascontiguousarray(item)
        else:
          meta["truth"][name] = item
    elif field.name != "file":
      meta[field.name] = value
  for name, array in arrays.items():
    if array.dtype == bfloat16:  # safetensors.numpy.load does not know it
      meta["bfloat16"].append(name)
      arrays[name] = array.view(np.uint16)
  return safetensors.save(arrays, metadata={"clip": json.dumps(meta)})


def from_record(record: bytes, file: str = "") -> Clip | EncodedClip:
  """The clip of `to_record`, checked. Raises ClipError naming `file` when the bytes are damaged."""
  try:
    arrays = safetensors.load(record)
    header = int.from_bytes(record[:8], "little")
    meta = json.loads(json.loads(record[8 : 8 + header])["__metadata__"]["clip"])
  except (SafetensorError, KeyError, ValueError) as error:
    raise ClipError(
      f"{file or 'record'}: not a clip record ({len(record)} bytes): {error}"
    ) from error
  for name in meta.pop("bfloat16", ()):
    array = arrays[name].view(bfloat16)
    arrays[name] = array.astype(np.float32) if name in _LATENTS else array
  truth = meta.pop("truth")
  truth |= {
    name.removeprefix("truth/"): arrays.pop(name)
    for name in list(arrays)
    if name.startswith("truth/")
  }
  return _KINDS[meta.pop("record")](**meta, **arrays, truth=truth, file=file)


def write_records(
  path: str | os.PathLike, clips: Iterable[Clip | EncodedClip], *, half: bool = False
) -> int:
  """Writes one ArrayRecord file, whole or not at all; returns the number of clips.

  `half` rounds latents to bfloat16; see `to_record`.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  count = 0
  try:
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
      for clip in clips:
        writer.write(to_record(clip, half=half))
        count += 1
    finally:
      writer.close()
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return count


class RecordSource:
  """Random access to the clips of ArrayRecord files, in the order of the sorted file names.

  Args:
    path: a file, or a folder whose `*.array_record` files are read; or several of these, in order.
  """

  def __init__(self, path: str | os.PathLike | Sequence[str | os.PathLike]):
    paths = [path] if isinstance(path, str | os.PathLike) else path
    self.files = [file for path in paths for file in _files(pathlib.Path(path))]
    self._readers = [_open(file) for file in self.files]
    self._ends = np.cumsum([reader.num_records() for reader in self._readers])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Clip | EncodedClip:
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    shard = int(np.searchsorted(self._ends, index, side="right"))
    within = index - (int(self._ends[shard - 1]) if shard else 0)
    try:
      record = self._readers[shard].read([within])[0]
    except (RuntimeError, ValueError, IndexError) as error:
      raise ClipError(f"{self.files[shard]}: record {within} cannot be read: {error}") from error
    return from_record(record, str(self.files[shard]))

  def __repr__(self) -> str:
    return f"RecordSource({len(self)} clips in {self.files[0].parent})"

  def __getstate__(self) -> dict:
    return {"files": self.files, "_ends": self._ends}

  def __setstate__(self, state: dict):
    self.__dict__ |= state
    self._readers = [_open(file) for file in self.files]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  files = sorted(path.glob("*.array_record")) if path.is_dir() else [path]
  if not files or not all(file.is_file() for file in files):
    raise FileNotFoundError(f"{path}: no *.array_record file here")
  return files


def _open(file: pathlib.Path) -> array_record_module.ArrayRecordReader:
  try:
    reader = array_record_module.ArrayRecordReader(str(file), "readahead_buffer_size:0")
    if not reader.num_records():
      raise RuntimeError("it holds no records")
  except (RuntimeError, ValueError) as error:
    raise ClipError(f"{file}: not a whole ArrayRecord file: {error}") from error
  return reader
