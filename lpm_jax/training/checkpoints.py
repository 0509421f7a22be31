"""Checkpoints: state, data iterator and config, written in the background, whole or not at all."""

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from lpm_jax.training.distributed import Restart
from lpm_jax.training.local_tier import LocalTier
from lpm_jax.training.state import TrainState


class CheckpointError(ValueError):
  """No checkpoint can be written or read. The message names the folder and the step."""


@dataclasses.dataclass
class Restored:
  """What a checkpoint holds: state, data iterator, training config, what the guard remembers."""

  state: TrainState
  data: dict
  config: dict
  guard: list


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


def _data(leaf: Any) -> Any:
  """The leaf, or the numbers of a random key; shapes stay shapes."""
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf)
  numbers = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=leaf.sharding)


def abstract(state: TrainState) -> TrainState:
  """Shapes, dtypes and shardings in place of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _flat(state: TrainState) -> dict[str, jax.Array]:
  """Arrays by path: a checkpoint that can be read without the classes that made it."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): _data(leaf) for path, leaf in leaves
  }


def _wanted(state: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings by path."""
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for name, x in _flat(state).items()
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
  """The checkpoints of one run, in workdir/checkpoints, and a local tier where the config has one.

  All processes call every method, with the same arguments.

  Args:
    workdir: folder of the run, writable and seen by all processes.
    config: training config as a JSON string; stored with every checkpoint.
    keep: how many of the newest are kept.
    local: `config.checkpoint.local`: `folder` on each host's disk, `every` and `keep`; "" is none.
  """

  def __init__(
    self, workdir: str | os.PathLike, config: str, *, keep: int, local: Mapping | None = None
  ):
    check_writable(workdir)
    self.folder = epath.Path(os.path.abspath(workdir) if "://" not in str(workdir) else workdir)
    self.config = config
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self.manager = ocp.CheckpointManager(self.folder / "checkpoints", options=options)
    local = dict(local or {})
    self.local, self.local_every = None, 0
    if local.get("folder"):
      self.local = LocalTier(local["folder"], os.fspath(self.folder), keep=local.get("keep", 2))
      self.local_every = local["every"]

  def save(self, step: int, state: TrainState, data: dict, guard: list | None = None):
    """Starts writing step `step`; returns once the arrays are copied from the devices."""
    if step in self.manager.all_steps():
      return
    flat = _flat(state)
    extra = self._extra(flat, data, guard) | {"digests": _digests(flat)}
    self.manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(flat), extra=ocp.args.JsonSave(extra)),
      force=True,
    )

  def save_local(self, step: int, state: TrainState, data: dict, guard: list | None = None):
    """Starts writing step `step` to the local tier."""
    flat = _flat(state)
    self.local.save(step, flat, self._extra(flat, data, guard))

  def _extra(self, flat: dict[str, jax.Array], data: dict, guard: list | None) -> dict:
    return {
      "data": data,
      "config": json.loads(self.config),
      "guard": guard or [],
      "shapes": {name: list(x.shape) for name, x in flat.items()},
    }

  def restore(self, like: TrainState) -> Restored | None:
    """The newest whole checkpoint of both tiers; None when there is none.

    A checkpoint that is damaged is moved to workdir/damaged and the one before it is read; of
    several processes, where perhaps not all have seen the damage, the one that has raises Restart.
    Raises CheckpointError when every one is damaged or the newest is of another model.

    Args:
      like: a state with the wanted shapes, dtypes and shardings, or its `abstract`.
    """
    self.manager.wait_until_finished()
    steps = sorted(self.manager.all_steps(), reverse=True)
    if self.local:
      found = self.local.restore(_wanted(like), after=steps[0] if steps else -1)
      if found:
        step, arrays, extra = found
        logging.warning("continuing from the local checkpoint of step %d", step)
        return self._restored(like, arrays, extra)
    for step in steps:
      try:
        restored = self._read(step, like)
      except CheckpointError:
        raise
      except Exception as error:  # what a damaged file raises depends on which byte is gone
        logging.error("checkpoint %d is damaged (%s); going back to the one before", step, error)
        self._set_aside(step)
        if jax.process_count() > 1:
          raise Restart(f"checkpoint {step} is damaged and was set aside: {error}") from error
        continue
      return restored
    if steps:
      raise CheckpointError(f"{self.folder}/checkpoints: all of steps {steps[::-1]} are damaged")
    return None

  def _read(self, step: int, like: TrainState) -> Restored:
    wanted = _wanted(like)
    args = ocp.args.Composite(extra=ocp.args.JsonRestore())
    extra = self.manager.restore(step, args=args)["extra"]
    shapes = {name: list(x.shape) for name, x in wanted.items()}
    differ = [n for n in {**shapes, **extra["shapes"]} if shapes.get(n) != extra["shapes"].get(n)]
    if differ:
      raise CheckpointError(
        f"{self.folder}/checkpoints/{step}: holds another model: {differ[0]}: found "
        f"{extra['shapes'].get(differ[0])}, expected {shapes.get(differ[0])}"
      )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
    found = self.manager.restore(step, args=args)["state"]
    wrong = [name for name, value in _digests(found).items() if value != extra["digests"][name]]
    if wrong:
      raise ValueError(f"bits of {wrong[0]} have changed")
    return self._restored(like, found, extra)

  def _restored(self, like: TrainState, arrays: dict[str, jax.Array], extra: dict) -> Restored:
    # A restored array may share memory with its file reader's buffers; the step donates its state.
    arrays = jax.tree.map(jnp.copy, arrays)
    leaves, treedef = jax.tree.flatten(like)
    named = zip(leaves, (arrays[name] for name in _flat(like)), strict=True)
    state = [
      jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new
      for old, new in named
    ]
    state = jax.tree.unflatten(treedef, state)
    return Restored(state, extra["data"], extra["config"], extra.get("guard", []))

  def _set_aside(self, step: int):
    target = self.folder / "damaged" / f"{step}-{uuid.uuid4().hex[:6]}"
    target.parent.mkdir(exist_ok=True)
    try:
      (self.folder / "checkpoints" / str(step)).rename(target)
    except OSError as error:  # another process was faster
      logging.warning("checkpoint %d: %s", step, error)
    self.manager.reload()

  def wait(self):
    """Until what was saved is on disk."""
    self.manager.wait_until_finished()
    if self.local:
      self.local.wait()

  def newest(self) -> int | None:
    """Step of the newest checkpoint, once it is on disk; None when there is none."""
    self.manager.wait_until_finished()
    return self.manager.latest_step()

  def close(self):
    """Waits, then lets go of the background threads."""
    self.wait()
    self.manager.close()
    if self.local:
      self.local.close()
