"""Checkpoints: state, data iterator and config, written in the background, whole or not at all."""

import json
import os
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from lpm_jax.training.state import TrainState


class CheckpointError(ValueError):
  """No checkpoint can be written or read. The message names the folder and the step."""


def check_writable(workdir: str | os.PathLike):
  """Creates `workdir` and writes a file in it; raises CheckpointError when that fails."""
  folder = epath.Path(workdir)
  probe = folder / f".writable.{uuid.uuid4().hex}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_text("")
    probe.unlink()
  except OSError as error:
    raise CheckpointError(f"workdir {workdir}: cannot be written: {error}") from error


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flat(state: TrainState) -> dict[str, jax.Array]:
  """Arrays by path: a checkpoint that can be read without the classes that made it."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): jax.random.key_data(leaf)
    if _is_key(leaf)
    else leaf
    for path, leaf in leaves
  }


@jax.jit
def _digest(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Wrapping sum of the bits of each array; does not depend on how it is sharded."""

  def one(x: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, width)
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

  return {name: one(x) for name, x in arrays.items()}


def _digests(arrays: dict[str, jax.Array]) -> dict[str, int]:
  return {name: int(value) for name, value in jax.device_get(_digest(arrays)).items()}


class Checkpoints:
  """The checkpoints of one run, in workdir/checkpoints.

  Args:
    workdir: folder of the run, writable.
    config: training config as a JSON string; stored with every checkpoint.
    keep: how many of the newest are kept.
  """

  def __init__(self, workdir: str | os.PathLike, config: str, *, keep: int):
    check_writable(workdir)
    self.folder = epath.Path(os.path.abspath(workdir) if "://" not in str(workdir) else workdir)
    self.config = config
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self.manager = ocp.CheckpointManager(self.folder / "checkpoints", options=options)

  def save(self, step: int, state: TrainState, data_state: dict):
    """Starts writing step `step`; returns once the arrays are copied from the devices."""
    if step in self.manager.all_steps():
      return
    flat = _flat(state)
    extra = {
      "data": data_state,
      "config": json.loads(self.config),
      "shapes": {name: list(x.shape) for name, x in flat.items()},
      "digests": _digests(flat),
    }
    self.manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(flat), extra=ocp.args.JsonSave(extra)),
      force=True,
    )

  def restore(self, like: TrainState) -> tuple[TrainState, dict, dict] | None:
    """State, data state and config of the newest whole checkpoint; None when there is none.

    A checkpoint that is damaged is moved to workdir/damaged and the one before it is read. Raises
    CheckpointError when every one is damaged or the newest is of another model.

    Args:
      like: a state with the wanted shapes, dtypes and shardings.
    """
    steps = sorted(self.manager.all_steps(), reverse=True)
    for step in steps:
      try:
        restored = self._read(step, like)
      except CheckpointError:
        raise
      except Exception as error:  # what a damaged file raises depends on which byte is gone
        logging.error("checkpoint %d is damaged (%s); going back to the one before", step, error)
        self._set_aside(step)
        continue
      return restored
    if steps:
      raise CheckpointError(f"{self.folder}/checkpoints: all of steps {steps[::-1]} are damaged")
    return None

  def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict, dict]:
    wanted = _flat(like)
    args = ocp.args.Composite(extra=ocp.args.JsonRestore())
    meta = self.manager.restore(step, args=args)["extra"]
    shapes = {name: list(x.shape) for name, x in wanted.items()}
    differ = [n for n in {**shapes, **meta["shapes"]} if shapes.get(n) != meta["shapes"].get(n)]
    if differ:
      raise CheckpointError(
        f"{self.folder}/checkpoints/{step}: holds another model: {differ[0]}: found "
        f"{meta['shapes'].get(differ[0])}, expected {shapes.get(differ[0])}"
      )
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    found = self.manager.restore(step, args=args)["state"]
    # A restored array may share memory with its file reader's buffers; the step donates its state.
    found = jax.tree.map(jnp.copy, found)
    wrong = [name for name, value in _digests(found).items() if value != meta["digests"][name]]
    if wrong:
      raise ValueError(f"bits of {wrong[0]} have changed")
    leaves, treedef = jax.tree.flatten(like)
    arrays = [
      jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new
      for old, new in zip(leaves, (found[name] for name in wanted), strict=True)
    ]
    return jax.tree.unflatten(treedef, arrays), meta["data"], meta["config"]

  def _set_aside(self, step: int):
    target = self.folder / "damaged" / f"{step}-{uuid.uuid4().hex[:6]}"
    if jax.process_index() == 0:
      target.parent.mkdir(exist_ok=True)
      (self.folder / "checkpoints" / str(step)).rename(target)
    if jax.process_count() > 1:
      jax.experimental.multihost_utils.sync_global_devices(f"set aside {step}")
    self.manager.reload()

  def newest(self) -> int | None:
    """Step of the newest checkpoint, once it is on disk; None when there is none."""
    self.manager.wait_until_finished()
    return self.manager.latest_step()

  def close(self):
    """Waits, then lets go of the background threads."""
    self.manager.wait_until_finished()
    self.manager.close()
