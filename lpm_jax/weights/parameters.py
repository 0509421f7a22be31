"""Parameters from wherever a model lies: an import, a weights folder or the workdir of a run."""

import os
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from safetensors import safe_open

from lpm_jax.weights import store
from lpm_jax.weights.layout import Entry
from lpm_jax.weights.shipped import WeightsError, read_tensor, weights_file


class Parameters:
  """Parameters by entry, read one at a time."""

  def __call__(self, entry: Entry) -> np.ndarray:
    """The parameter of an entry, or its part at the entry's index; WeightsError when missing."""
    raise NotImplementedError

  def has(self, entry: Entry) -> bool:
    """Whether it must be there: a trained model has every parameter, an import only its own."""
    del entry
    return True


def open_parameters(folder: str | os.PathLike, kind: str, *, average: bool) -> Parameters:
  """The parameters of one kind of module in a folder.

  Args:
    folder: an import (its parent or itself), the workdir of a run (newest checkpoint), or a folder
      with weights as training exports them.
    kind: "transformer" or "vae".
    average: of a run: the moving average rather than the parameters of the last step.

  Raises:
    WeightsError: nothing of the kind there.
  """
  imported = store.find_import(folder, kind)
  if imported:
    return _Imported(imported)
  checkpoints = store.absolute(folder) / "checkpoints"
  if checkpoints.exists():
    return _Run(checkpoints, kind, "ema" if average else "params")
  export = next((name for name, of in store.KIND_OF.items() if of == kind), kind)
  if not average:
    raise WeightsError(f"{folder}: weights as training exports them are averages: average=True")
  return _Exported(weights_file(folder, export), kind)


class _Imported(Parameters):
  """The tensors of an import; keeps the part that was read last."""

  def __init__(self, imported: store.ImportedWeights):
    self._imported = imported
    self._places = {t["key"]: t["part"] for t in imported.manifest["tensors"]}
    self._part: tuple[int, dict[str, np.ndarray]] = (-1, {})

  def has(self, entry: Entry) -> bool:
    return store.key(entry) in self._places or entry.target in self._imported.manifest["constants"]

  def __call__(self, entry: Entry) -> np.ndarray:
    constants = self._imported.manifest["constants"]
    if entry.target in constants:
      return np.asarray(constants[entry.target], np.float32)
    key = store.key(entry)
    if key not in self._places:
      raise WeightsError(f"{self._imported.folder}: {key}: not in the import")
    if self._part[0] != self._places[key]:
      number = self._places[key]
      self._part = number, self._imported.read_part(number)
    return self._part[1][key]


class _Exported(Parameters):
  """The tensors of a safetensors file of this project."""

  def __init__(self, path: os.PathLike, kind: str):
    self._file = safe_open(path, framework="numpy")
    self._path, self._kind, self._names = path, kind, set(self._file.keys())

  def __call__(self, entry: Entry) -> np.ndarray:
    name = _known(self._names, entry.target, self._kind, self._path)
    packed = self._file.get_slice(name).get_dtype() == "I8"
    if entry.index is not None and not packed:
      return self._file.get_slice(name)[entry.index]
    tensor = read_tensor(self._file, name)
    return tensor if entry.index is None else tensor[entry.index]


class _Run(Parameters):
  """The newest checkpoint of a run; keeps the parameter that was read last."""

  def __init__(self, folder: os.PathLike, kind: str, part: str):
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    if not steps:
      raise WeightsError(f"{folder}: no checkpoint")
    self._path, self._kind = folder / str(max(steps)) / "state", kind
    self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    self._names = {}  # path of a parameter -> its name in the checkpoint
    for name in self._checkpointer.metadata(self._path).item_metadata.tree:
      for prefix in (f"{part}.", "rest."):
        if name.startswith(prefix):
          path = name.removeprefix(prefix).removesuffix(".value").replace(".", "/")
          self._names[path] = name
    self._last: tuple[str, Any] = ("", None)

  def __call__(self, entry: Entry) -> np.ndarray:
    name = self._names[_known(self._names, entry.target, self._kind, self._path)]
    if self._last[0] != name:
      restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
      args = ocp.args.PyTreeRestore(
        {name: np.zeros(())}, restore_args=restore_args, partial_restore=True
      )
      self._last = name, self._checkpointer.restore(self._path, args=args)[name]
    whole = self._last[1]
    return whole if entry.index is None else whole[entry.index]


def _known(names: Any, target: str, kind: str, where: object) -> str:
  for name in (target, f"{kind}/{target}"):
    if name in names:
      return name
  raise WeightsError(f"{where}: {target}: missing")
