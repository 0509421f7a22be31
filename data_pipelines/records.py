"""Clips in ArrayRecord files, one safetensors payload a clip; ArrayRecord checksums its chunks."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from array_record.python import array_record_module
from ml_dtypes import bfloat16
from safetensors import numpy as safetensors
from tqdm import tqdm

from data_pipelines.clip import (
  Candidates,
  Clip,
  ClipError,
  EncodedClip,
  Preference,
  Trajectory,
)
from data_pipelines.index import Index, entry, read_index, write_index

_LATENTS = ("latents", "references")
_KINDS = {kind.__name__: kind for kind in (Clip, EncodedClip, Trajectory, Candidates, Preference)}
_DTYPES = {  # as safetensors spells them; the layout is little-endian
  "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
  "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


def to_record(clip: Clip | EncodedClip, *, half: bool = False) -> bytes:
  """Bytes of one clip: arrays as safetensors, everything else as JSON in its metadata.

  With `half` the latents of clip and references are rounded to bfloat16, and stay so when read.
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
  """The clip of `to_record`, checked. Raises ClipError naming `file` when the bytes are damaged.

  Nothing is copied: the arrays are views of the record and cannot be written to.
  """
  try:
    arrays, meta = _views(record)
    for name in meta.pop("bfloat16", ()):
      arrays[name] = arrays[name].view(bfloat16)
    truth, kind = meta.pop("truth"), _KINDS[meta.pop("record")]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ClipError(
      f"{file or 'record'}: not a clip record ({len(record)} bytes): {error!r}"
    ) from error
  truth |= {
    name.removeprefix("truth/"): arrays.pop(name)
    for name in list(arrays)
    if name.startswith("truth/")
  }
  return kind(**meta, **arrays, truth=truth, file=file)


def _views(record: bytes) -> tuple[dict[str, np.ndarray], dict]:
  """The arrays of a safetensors payload, as views, and the JSON in its metadata.

  `safetensors.load` would copy every array, 40 MB a clip at the 17B scale.
  """
  start = 8 + int.from_bytes(record[:8], "little")
  header = json.loads(record[8:start])
  meta = json.loads(header.pop("__metadata__")["clip"])
  arrays = {}
  for name, tensor in header.items():
    begin, end = tensor["data_offsets"]
    shape, dtype = tuple(tensor["shape"]), np.dtype(_DTYPES[tensor["dtype"]])
    if end - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{name}: {end - begin} bytes for {dtype} {shape}")
    arrays[name] = np.ndarray(shape, dtype, buffer=record, offset=start + begin)
  return arrays, meta


def write_records(
  path: str | os.PathLike, clips: Iterable[Clip | EncodedClip], *, half: bool = False
) -> int:
  """Writes one ArrayRecord file, whole or not at all; returns the number of clips.

  `half` rounds latents to bfloat16; see `to_record`. The index of the clips is written beside it.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  entries = []
  try:
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
      for clip in clips:
        record = to_record(clip, half=half)
        writer.write(record)
        entries.append(entry(from_record(record)))
    finally:
      writer.close()
    # First the index: a record file that exists has one, whenever a kill comes.
    write_index(path, Index.of_clips(entries), temporary.stat().st_size)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return len(entries)


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

  def index(self) -> Index:
    """What is known of every clip. Reads records only where a file has no index that fits it."""
    parts = []
    for file, reader in zip(self.files, self._readers, strict=True):
      count, before = reader.num_records(), sum(len(part.states) for part in parts)
      known = read_index(file, count)
      if known is None:
        clips = tqdm(range(before, before + count), desc=f"index {file.name}", unit="clip")
        known = Index.of_clips([entry(self[i]) for i in clips])
      parts.append(known)
    return Index.joined(parts)

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
