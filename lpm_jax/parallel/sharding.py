"""Logical axis names -> shardings. Models name what an axis is; a config says where it lies."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
Rules = Mapping[str, str | Sequence[str] | None]


def partition_spec(
  names: Sequence[str | None] | None, shape: Sequence[int], mesh: Mesh, rules: Rules
) -> PartitionSpec:
  """Mesh axes of an array whose axes carry logical `names`.

  An axis stays whole when no rule names it, when its mesh axis already shards an earlier axis, or
  when its size does not divide: every config then runs on every mesh.
  """
  if not names:
    return PartitionSpec()
  taken: set[str] = set()
  spec = []
  for name, size in zip(names, shape, strict=True):
    axes = rules.get(name) if name else None
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    axes = tuple(axis for axis in axes if axis not in taken and mesh.shape[axis] > 1)
    if not axes or size % math.prod(mesh.shape[axis] for axis in axes):
      spec.append(None)
      continue
    taken.update(axes)
    spec.append(axes if len(axes) > 1 else axes[0])
  return PartitionSpec(*spec)


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
  """A NamedSharding for every array of a pytree; `nnx.Variable`s in it say their logical names."""

  def of_node(node: Any) -> Any:
    names = node.get_metadata().get("out_sharding") if isinstance(node, nnx.Variable) else None
    return jax.tree.map(
      lambda leaf: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules)), node
    )

  return jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where arrays lie: a mesh, and the mesh axes of logical names.

  Args:
    mesh: devices.
    rules: see `partition_spec`; (name, mesh axes) pairs, so that a placement can be hashed.
  """

  mesh: Mesh
  rules: tuple[tuple[str, str], ...] = ()

  def shardings(self, tree: Any, axes: Any) -> Any:
    """A NamedSharding for every array; `axes` has their logical names in the same structure."""
    rules = dict(self.rules)

    def of_leaf(x: jax.Array, names: Sequence[str | None]) -> NamedSharding:
      spec = list(partition_spec(names, x.shape, self.mesh, rules))
      while spec and spec[-1] is None:  # as the compiler spells it: else a step compiles twice
        spec.pop()
      return NamedSharding(self.mesh, PartitionSpec(*spec))

    return jax.tree.map(of_leaf, tree, axes)

  def put(self, tree: Any, axes: Any) -> Any:
    """The arrays of a tree, moved where they belong."""
    return jax.device_put(tree, self.shardings(tree, axes))

  def keep(self, tree: Any, axes: Any) -> Any:
    """Within jit: the compiler leaves the arrays where they belong."""
    return jax.lax.with_sharding_constraint(tree, self.shardings(tree, axes))

  def put_module(self, state: nnx.State) -> nnx.State:
    """The state of a module, whose variables name their axes."""
    return jax.device_put(state, tree_shardings(state, self.mesh, dict(self.rules)))

  def put_whole(self, tree: Any) -> Any:
    """The arrays of a tree, a copy on each device."""
    return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis over data and fsdp, the rest whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """The global batch from the rows that this process read."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
  }
