"""Published checkpoints on disk, tensor by tensor: safetensors, sharded or not, PyTorch files."""

import dataclasses
import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lpm_jax.weights.shipped import WeightsError

DTYPES = ("float32", "bfloat16", "float16")
_SAFETENSORS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor lies and what it is: file, its name there, shape, dtype."""

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str

  @property
  def bytes(self) -> int:
    """Its size in memory."""
    return int(np.prod(self.shape)) * (4 if self.dtype == "float32" else 2)


class PublicCheckpoint:
  """The tensors of a published checkpoint by name; no file is loaded whole.

  Args:
    path: a .safetensors file, a .safetensors.index.json, a PyTorch file (.pth, .pt, .bin, which
      needs torch), or a folder with exactly one of these.
    rename: from a name in the file to the name that a layout uses.

  Attributes:
    tensors: TensorInfo by name.

  Raises:
    WeightsError: no checkpoint, an index that names an absent file or tensor, a file that was cut
      or is damaged, a tensor that is not of floating point.
  """

  def __init__(self, path: str | os.PathLike, *, rename: Callable[[str], str] = lambda name: name):
    self.path = _checkpoint_file(pathlib.Path(path))
    self._torch: dict[pathlib.Path, dict] = {}
    self.tensors: dict[str, TensorInfo] = {}
    for info in self._infos():
      if info.dtype not in DTYPES:
        raise WeightsError(
          f"{info.file}: {info.name}: found dtype {info.dtype}, expected one of {DTYPES}"
        )
      self.tensors[rename(info.name)] = info

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name."""
    return {name: info.shape for name, info in self.tensors.items()}

  def fingerprint(self) -> str:
    """Changes with any name, shape, dtype, file name or file size; reads no tensor."""
    files = {info.file for info in self.tensors.values()}
    sizes = sorted((file.name, file.stat().st_size) for file in files)
    tensors = sorted((n, i.file.name, i.shape, i.dtype) for n, i in self.tensors.items())
    return hashlib.sha256(json.dumps([sizes, tensors]).encode()).hexdigest()

  def read(self, name: str) -> np.ndarray:
    """One tensor, as it is stored. Raises WeightsError naming file and tensor."""
    info = self.tensors[name]
    if info.file.suffix != ".safetensors":
      return _as_numpy(self._torch[info.file][info.name])
    try:
      with safe_open(info.file, framework="numpy") as file:
        return file.get_tensor(info.name)
    except (OSError, SafetensorError) as error:
      raise WeightsError(f"{info.file}: {info.name}: cannot be read: {error}") from error

  def _infos(self) -> list[TensorInfo]:
    if self.path.suffix == ".json":
      return _index_infos(self.path)
    if self.path.suffix == ".safetensors":
      return _safetensors_infos(self.path)
    tensors = _load_torch(self.path)
    self._torch[self.path] = tensors
    return [
      TensorInfo(self.path, name, tuple(x.shape), str(x.dtype).removeprefix("torch."))
      for name, x in tensors.items()
    ]


def tensor_hash(tensor: np.ndarray) -> str:
  """SHA-256 of the bytes of a tensor."""
  return hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)).hexdigest()


def _checkpoint_file(path: pathlib.Path) -> pathlib.Path:
  if path.is_file():
    return path
  if not path.is_dir():
    raise WeightsError(f"{path}: no such checkpoint")
  for pattern in ("*.safetensors.index.json", "*.safetensors", "*.pth", "*.pt", "*.bin"):
    found = sorted(path.glob(pattern))
    if len(found) > 1:
      names = ", ".join(file.name for file in found[:4])
      raise WeightsError(f"{path}: {len(found)} checkpoints ({names}, ...): name one of them")
    if found:
      return found[0]
  raise WeightsError(f"{path}: no .safetensors, no index and no PyTorch file in this folder")


def _index_infos(index: pathlib.Path) -> list[TensorInfo]:
  try:
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
  except (ValueError, KeyError) as error:
    raise WeightsError(f"{index}: not an index of safetensors: {error!r}") from error
  infos = []
  for name in sorted(set(places.values())):
    file = index.with_name(name)
    named = [tensor for tensor, place in places.items() if place == name]
    if not file.is_file():
      raise WeightsError(f"{index}: names {name}, which is absent ({named[0]} lies there)")
    found = _safetensors_infos(file)
    missing = sorted(set(named) - {info.name for info in found})
    if missing:
      raise WeightsError(f"{file}: {missing[0]}: missing, though {index.name} says it lies there")
    infos += found
  return infos


def _safetensors_infos(path: pathlib.Path) -> list[TensorInfo]:
  try:
    with safe_open(path, framework="numpy") as file:
      slices = {name: file.get_slice(name) for name in file.keys()}
      return [
        TensorInfo(path, name, tuple(x.get_shape()), _SAFETENSORS.get(x.get_dtype(), x.get_dtype()))
        for name, x in slices.items()
      ]
  except (OSError, SafetensorError) as error:
    raise WeightsError(f"{path}: {_damage(path)}: {error}") from error


def _damage(path: pathlib.Path) -> str:
  """What is wrong with a file that safetensors refuses; names the first tensor that was cut."""
  try:
    with path.open("rb") as file:
      (length,) = struct.unpack("<Q", file.read(8))
      header = json.loads(file.read(length))
    size = path.stat().st_size - 8 - length
    cut = [
      (value["data_offsets"][1], name)
      for name, value in header.items()
      if name != "__metadata__" and value["data_offsets"][1] > size
    ]
  except (OSError, ValueError, KeyError, struct.error):
    return "its header is damaged or cut"
  return f"{min(cut)[1]}: cut off, with {len(cut) - 1} others" if cut else "not a safetensors file"


def _load_torch(path: pathlib.Path) -> dict:
  try:
    import torch
  except ImportError as error:
    raise WeightsError(
      f"{path}: a PyTorch file needs torch: pip install lpm_jax[parity]"
    ) from error
  try:
    loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
  except Exception as error:  # what a damaged file raises depends on which byte is gone
    raise WeightsError(f"{path}: not a whole PyTorch checkpoint: {error}") from error
  tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
  wrong = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
  if wrong or not tensors:
    raise WeightsError(f"{path}: {wrong[0] if wrong else 'the file'}: not a dict of tensors")
  return tensors


def _as_numpy(tensor) -> np.ndarray:
  import torch

  tensor = tensor.detach().contiguous()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()
