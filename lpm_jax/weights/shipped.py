"""Weights files: safetensors beside their config. The shipped puppet weights are such files."""

import dataclasses
import json
import os
import pathlib
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

PUPPETS = pathlib.Path(__file__).parent / "puppets"
SCALE = ":scale"  # behind the name of a tensor of eight bits: what its integers are multiplied with


class WeightsError(ValueError):
  """A weights file does not fit its module. The message names the file and the tensor."""


def flat_state(module: nnx.Module) -> dict[str, nnx.Variable]:
  """The arrays of a module by '/'-joined path, random-number state left out."""
  state = nnx.state(module, nnx.Not(nnx.RngState))
  return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def save_module(
  path: str | os.PathLike, module: nnx.Module, *, config: dict, dtype: str = "float16"
):
  """Writes a module and its config dict to one safetensors file, whole or not at all.

  Floating-point tensors are stored as `dtype`; others as they are.
  """
  tensors = {}
  for name, leaf in flat_state(module).items():
    array = np.asarray(jax.device_get(leaf[...]))
    is_float = np.issubdtype(array.dtype, np.floating)
    tensors[name] = np.ascontiguousarray(array.astype(dtype) if is_float else array)
  save_tensors(path, tensors, config)


def save_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray], config: dict):
  """Writes tensors and a config dict to one safetensors file, whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    write_tensors(temporary, tensors, {"config": json.dumps(config)})
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]):
  """`save_file`, with the rights of any new file: safetensors leaves its files to their owner."""
  save_file(tensors, path, metadata=metadata)
  masked = os.umask(0)
  os.umask(masked)
  path.chmod(0o666 & ~masked)


def read_config(path: str | os.PathLike) -> dict:
  """The config dict stored in a weights file."""
  try:
    with safe_open(path, framework="numpy") as file:
      return json.loads(file.metadata()["config"])
  except (OSError, SafetensorError, KeyError, TypeError) as error:
    raise WeightsError(f"{path}: not a weights file of this project: {error}") from error


def load_module(path: str | os.PathLike, module: nnx.Module) -> nnx.Module:
  """Fills `module`, which may be abstract (`nnx.eval_shape`), with the tensors of a file.

  Raises WeightsError naming what is missing, extra or of another shape.
  """
  read_config(path)
  wanted = flat_state(module)
  with safe_open(path, framework="numpy") as file:
    found = {name for name in file.keys() if not name.endswith(SCALE)}
    if found != set(wanted):
      missing, extra = sorted(set(wanted) - found)[:3], sorted(found - set(wanted))[:3]
      raise WeightsError(f"{path}: tensors missing: {missing}, not known: {extra}")
    for name, leaf in wanted.items():
      tensor = read_tensor(file, name)
      if tensor.shape != leaf.shape:
        raise WeightsError(f"{path}: {name}: found shape {tensor.shape}, expected {leaf.shape}")
      wanted[name] = leaf.replace(jnp.asarray(tensor, leaf.dtype))
  nnx.update(module, nnx.from_flat_state([(tuple(_keys(n)), v) for n, v in wanted.items()]))
  return module


def read_tensor(file: safe_open, name: str) -> np.ndarray:
  """A tensor of an open weights file as numbers, also where it is stored with eight bits."""
  tensor = file.get_tensor(name)
  if tensor.dtype != np.int8:
    return tensor
  return tensor.astype(np.float32) * file.get_tensor(name + SCALE).astype(np.float32)


def load_built(
  path: str | os.PathLike, config_class: type, build: Callable[..., nnx.Module]
) -> nnx.Module:
  """The module that `build(config, rngs=...)` makes from the config stored in a file, filled."""
  config = config_from_dict(config_class, read_config(path))
  return load_module(path, nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))


def _keys(name: str) -> list[str | int]:
  return [int(key) if key.isdigit() else key for key in name.split("/")]


def config_from_dict(cls: type, values: dict) -> object:
  """A (nested, frozen) config dataclass from plain values; lists become tuples."""
  hints = typing.get_type_hints(cls)
  unknown = set(values) - set(hints)
  if unknown:
    raise WeightsError(f"{cls.__name__}: unknown fields {sorted(unknown)}")
  fields = {}
  for name, value in values.items():
    options = (hints[name], *typing.get_args(hints[name]))
    nested = next(filter(dataclasses.is_dataclass, options), None)
    if nested and isinstance(value, dict):
      value = config_from_dict(nested, value)
    fields[name] = _tuples(value)
  return cls(**fields)


def _tuples(value: object) -> object:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def weights_file(folder: str | os.PathLike, name: str) -> pathlib.Path:
  """The file `name`.safetensors of a folder; the folder "puppets" means the shipped weights."""
  path = _path(folder, name)
  if not path.is_file():
    raise WeightsError(f"{path}: no such weights file")
  return path


def has_weights(folder: str | os.PathLike, name: str) -> bool:
  """Whether a folder, which may be "puppets", has the file `name`.safetensors."""
  return _path(folder, name).is_file()


def _path(folder: str | os.PathLike, name: str) -> pathlib.Path:
  folder = PUPPETS if str(folder) == "puppets" else pathlib.Path(folder)
  return folder / f"{name}.safetensors"
