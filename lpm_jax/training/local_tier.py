"""A second tier of checkpoints: every process keeps its own shards on its host's disk."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental.multihost_utils import process_allgather
from safetensors import safe_open
from safetensors.numpy import save_file

Bounds = tuple[tuple[int, int], ...]


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _name(path: str, bounds: Bounds) -> str:
  return f"{path}@{','.join(f'{begin}:{end}' for begin, end in bounds)}"


class LocalTier:
  """Checkpoints of this process alone, for restarts on the same hosts with the same layout.

  They cost neither network nor bucket and can be written often. A host that is replaced has none,
  and then no process uses its own: `newest` agrees on that.

  Args:
    folder: on a local disk; holds a folder for each run and process.
    run: what names the run, its workdir.
    keep: how many of the newest are kept.
  """

  def __init__(self, folder: str | os.PathLike, run: str, *, keep: int = 2):
    process = f"process-{jax.process_index()}-of-{jax.process_count()}"
    self._folder = pathlib.Path(folder) / hashlib.sha256(run.encode()).hexdigest()[:12] / process
    self._folder.mkdir(parents=True, exist_ok=True)
    for left in self._folder.glob("*.tmp"):  # of a kill while writing
      left.unlink()
    self._keep = keep
    self._worker = concurrent.futures.ThreadPoolExecutor(1, "local checkpoint")
    self._writing: concurrent.futures.Future | None = None

  def _path(self, step: int) -> pathlib.Path:
    return self._folder / f"{step:09d}.safetensors"

  def steps(self) -> list[int]:
    """Steps of the files that are there, ascending."""
    return sorted(int(path.stem) for path in self._folder.glob("*.safetensors"))

  def save(self, step: int, arrays: dict[str, jax.Array], extra: dict):
    """Copies this process's shards from the devices and starts writing them."""
    self.wait()
    shards = {}
    for path, array in arrays.items():
      for shard in array.addressable_shards:
        name = _name(path, _bounds(shard.index, array.shape))
        if name not in shards:
          copy = np.array(shard.data, order="C")  # the next step donates the device's buffer
          shards[name] = copy.reshape(-1).view(np.uint8)
    self._writing = self._worker.submit(self._write, step, shards, extra)

  def _write(self, step: int, shards: dict[str, np.ndarray], extra: dict):
    sums = {name: zlib.crc32(data) for name, data in shards.items()}
    metadata = {"sums": json.dumps(sums), "extra": json.dumps(extra)}
    fresh = self._path(step).with_suffix(".tmp")
    save_file(shards, fresh, metadata=metadata)
    with open(fresh, "rb") as file:
      os.fsync(file.fileno())
    fresh.rename(self._path(step))
    for old in self.steps()[: -self._keep]:
      self._path(old).unlink(missing_ok=True)

  def wait(self):
    """Until the last save is on disk. A disk that is full is logged: the bucket has the run."""
    if self._writing:
      try:
        self._writing.result()
      except Exception as error:
        logging.warning("local checkpoint was not written: %s", error)
      self._writing = None

  def restore(
    self, arrays: dict[str, jax.ShapeDtypeStruct], after: int
  ) -> tuple[int, dict[str, jax.Array], dict] | None:
    """Step, arrays and extra of the newest step that every process has whole; None without one.

    All processes call it and get the same step.

    Args:
      arrays: shapes, dtypes and shardings that are wanted.
      after: steps up to this one are of no use.
    """
    self.wait()
    own = [step for step in self.steps() if step > after]
    for step in sorted(_common(own, self._keep + 1), reverse=True):
      try:
        found = self._read(self._path(step), arrays)
      except Exception as error:  # what a damaged file raises depends on which byte is gone
        logging.warning("%s cannot be used: %s", self._path(step), error)
        found = None
      if _all(found is not None):
        return step, *found
    return None

  def _read(
    self, path: pathlib.Path, arrays: dict[str, jax.ShapeDtypeStruct]
  ) -> tuple[dict[str, jax.Array], dict]:
    result = {}
    with safe_open(path, "numpy") as file:
      metadata = file.metadata()
      sums = json.loads(metadata["sums"])

      def shard(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        data = file.get_tensor(name)
        if zlib.crc32(data) != sums[name]:
          raise ValueError(f"bits of {name} have changed")
        return data.view(dtype).reshape(shape)

      for key, wanted in arrays.items():
        parts = {}
        for index in wanted.sharding.addressable_devices_indices_map(wanted.shape).values():
          bounds = _bounds(index, wanted.shape)
          shape = tuple(end - begin for begin, end in bounds)
          parts[bounds] = shard(_name(key, bounds), wanted.dtype, shape)
        shape = wanted.shape
        result[key] = jax.make_array_from_callback(
          shape, wanted.sharding, lambda index, p=parts, s=shape: p[_bounds(index, s)]
        )
    return result, json.loads(metadata["extra"])

  def forget(self, after: int):
    """Removes the steps after `after`: the run has gone back behind them."""
    self.wait()
    for step in self.steps():
      if step > after:
        self._path(step).unlink(missing_ok=True)

  def close(self):
    """Waits for the last save."""
    self.wait()
    self._worker.shutdown()


def _common(steps: list[int], most: int) -> set[int]:
  """Steps that all processes have, of the newest `most` of each."""
  padded = np.full(most, -1, np.int64)
  newest = steps[-most:]
  padded[: len(newest)] = newest
  rows = np.asarray(process_allgather(padded)).reshape(-1, most)
  return set.intersection(*({int(step) for step in row if step >= 0} for row in rows))


def _all(flag: Any) -> bool:
  return bool(np.all(process_allgather(np.array(bool(flag)))))
