"""Imported weights on disk: Orbax checkpoints of bounded size and a manifest.

  FOLDER/parts/0000      Orbax checkpoint: some tensors, in our order of axes, as they were stored
  FOLDER/parts/0000.json their source names and hashes
  FOLDER/manifest.json   written last: without it the import is not whole

A part holds tensors of one layer each, not whole stacked parameters, so neither writing nor reading
needs more memory than a part and the largest tensor. Arrays are cut into chunks, of which a process
reads only those that its devices keep.
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lpm_jax.weights.layout import Entry
from lpm_jax.weights.shipped import WeightsError, flat_state

FORMAT = 1
KIND_OF = {"base": "transformer"}  # what training exports -> the public model it starts from
PART_BYTES = 512 << 20
CHUNK_BYTES = 1 << 20
MANIFEST = "manifest.json"


def absolute(folder: str | os.PathLike) -> epath.Path:
  """The folder as Orbax wants it; bucket paths stay as they are."""
  return epath.Path(folder if "://" in str(folder) else os.path.abspath(folder))


def key(entry: Entry) -> str:
  """Name of an entry's tensor in a part."""
  return entry.target if entry.index is None else f"{entry.target}@{entry.index}"


def plan_parts(entries: Iterable[Entry], sizes: Mapping[str, int]) -> list[list[Entry]]:
  """Entries in order, cut so that a part has at most PART_BYTES or a single tensor.

  Args:
    entries: the layout.
    sizes: bytes of each public tensor by name.
  """
  parts: list[list[Entry]] = []
  room = 0
  for entry in entries:
    size = sizes[entry.source]
    if not parts or size > room:
      parts.append([])
      room = PART_BYTES
    parts[-1].append(entry)
    room -= size
  return parts


def write_json(path: epath.Path, values: Any):
  """Writes a JSON file whole or not at all."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  temporary.write_text(json.dumps(values, indent=1))
  temporary.replace(path)


def read_json(path: epath.Path) -> Any:
  """Reads a JSON file; WeightsError when it is not one."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise WeightsError(f"{path}: not a JSON file: {error}") from error


def write_part(path: epath.Path, tensors: Mapping[str, np.ndarray]):
  """Writes one part, replacing what a killed import left of it."""
  save_args = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in tensors}
  with _checkpointer() as checkpointer:
    checkpointer.save(path, args=ocp.args.PyTreeSave(dict(tensors), save_args), force=True)


def _checkpointer() -> ocp.Checkpointer:
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def find_import(folder: str | os.PathLike, kind: str) -> "ImportedWeights | None":
  """The import of one kind in a folder of imports, or the folder itself; None if there is none."""
  for place in (absolute(folder) / kind, absolute(folder)):
    if (place / MANIFEST).exists():
      imported = ImportedWeights(place)
      if imported.manifest["kind"] == kind:
        return imported
  return None


class ImportedWeights:
  """An imported checkpoint: its manifest, and its tensors one part at a time.

  Args:
    folder: what `lpm weights import` wrote: the folder with manifest.json.

  Raises:
    WeightsError: no whole import there.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = absolute(folder)
    if not (self.folder / MANIFEST).exists():
      raise WeightsError(f"{folder}: no {MANIFEST}: not a whole import")
    self.manifest = read_json(self.folder / MANIFEST)
    if self.manifest.get("format") != FORMAT:
      raise WeightsError(f"{folder}: found format {self.manifest.get('format')}, expected {FORMAT}")

  def parts(self) -> Iterator[tuple[int, list[dict]]]:
    """The records of the manifest, part by part."""
    for number in range(self.manifest["parts"]):
      yield number, [t for t in self.manifest["tensors"] if t["part"] == number]

  def read_part(self, number: int) -> dict[str, np.ndarray]:
    """All tensors of a part in host memory, as stored."""
    restore_args = {
      t["key"]: ocp.RestoreArgs(restore_type=np.ndarray)
      for t in self.manifest["tensors"]
      if t["part"] == number
    }
    return self._restore(number, restore_args=restore_args)

  def fill(self, module: nnx.Module):
    """Sets the parameters of `module` that the import has, each where its sharding says.

    `module` is the imported model or one that has it as the attribute named after its kind; it may
    be abstract. Raises WeightsError for a parameter that is missing there or of another shape.
    """
    state = flat_state(module)
    place = functools.partial(_place, state, self.manifest["kind"], str(self.folder))
    for path, values in self.manifest["constants"].items():
      leaf = place(path)
      _assign(leaf, None, jnp.asarray(values, leaf.dtype))
    for number, records in self.parts():
      leaves = {t["key"]: place(t["target"]) for t in records}
      wanted = {t["key"]: _piece(leaves[t["key"]], t, str(self.folder)) for t in records}
      restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
      arrays = self._restore(number, item=wanted, restore_args=restore_args)
      for t in records:
        _assign(leaves[t["key"]], t["index"], arrays[t["key"]])
    nnx.update(module, nnx.from_flat_state([(_path(n), leaf) for n, leaf in state.items()]))

  def _restore(self, number: int, **args: Any) -> dict[str, Any]:
    path = self.folder / "parts" / f"{number:04d}"
    try:
      with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(**args))
    except Exception as error:  # what a damaged file raises depends on which byte is gone
      raise WeightsError(f"{path}: damaged or missing: {error}") from error


def _path(name: str) -> tuple[str | int, ...]:
  return tuple(int(key) if key.isdigit() else key for key in name.split("/"))


def _place(state: Mapping[str, nnx.Variable], kind: str, folder: str, path: str) -> nnx.Variable:
  for name in (path, f"{kind}/{path}"):
    if name in state:
      return state[name]
  raise WeightsError(f"{folder}: {path}: the model that is to be filled has no such parameter")


def _piece(leaf: nnx.Variable, record: dict, folder: str) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of what a record sets in a parameter: one layer, or all of it."""
  shape, sharding = leaf.shape, getattr(leaf.get_value(), "sharding", None)
  if record["index"] is not None:
    shape = shape[1:]
    if isinstance(sharding, NamedSharding):
      sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
  if tuple(record["here"]) != tuple(shape):
    raise WeightsError(
      f"{folder}: {record['key']}: found shape {tuple(record['here'])}, expected {tuple(shape)}"
    )
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


def _assign(leaf: nnx.Variable, index: int | None, value: jax.Array):
  old = leaf.get_value()
  if isinstance(old, jax.ShapeDtypeStruct):
    zeros = functools.partial(jnp.zeros, device=getattr(old, "sharding", None))
    old = zeros(old.shape, old.dtype) if index is not None else None
  leaf.set_value(value if index is None else _set_layer(old, value, index))


def _set_layer(stacked: jax.Array, value: jax.Array, index: int) -> jax.Array:
  return _layer_setter(stacked.sharding)(stacked, value, jnp.int32(index))


@functools.lru_cache
def _layer_setter(sharding: jax.sharding.Sharding):
  def set_layer(stacked: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, value, index, 0)

  return jax.jit(set_layer, donate_argnums=0, out_shardings=sharding)
