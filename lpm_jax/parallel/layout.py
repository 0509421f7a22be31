"""Where activations and used weights lie while a step is traced: logical names -> mesh axes.

Parameters are stored by one set of rules and used by another: a weight that lies apart over `fsdp`
is whole while a layer multiplies with it, and its gradient goes back apart. All of this does
nothing without a mesh in force (`jax.set_mesh`).
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
from jax import Array
from jax.sharding import PartitionSpec

from lpm_jax.parallel.sharding import BATCH_AXES, Rules, partition_spec

ACTIVATIONS: Rules = {
  "batch": BATCH_AXES,
  "tokens": ("tensor", "context"),  # of each grid, between layers
  "queries": "context",  # of each grid, within attention
  "heads": "tensor",
  "cached": ("tensor", "context"),  # heads, where all tokens of a stream meet
  "mlp": "tensor",
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rules in force.

  Attributes:
    activations: mesh axes of activations, and of weights while they are used.
    stored: mesh axes of parameters and their gradients; None: used where they are stored.
  """

  activations: Rules
  stored: Rules | None = None


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def _current() -> Layout:
  return _LAYOUT.get() or Layout(ACTIVATIONS)


@contextlib.contextmanager
def in_force(*, stored: Rules | None, **activations: str | Sequence[str]) -> Iterator[None]:
  """Rules for what is traced inside; `activations` replace those of ACTIVATIONS by name."""
  token = _LAYOUT.set(Layout({**ACTIVATIONS, **activations}, stored))
  try:
    yield
  finally:
    _LAYOUT.reset(token)


def size(name: str) -> int:
  """Over how many devices of the mesh in force a logical axis may lie."""
  return math.prod(axis_size(axis) for axis in axes(name))


def axes(name: str) -> tuple[str, ...]:
  """Mesh axes over which a logical axis lies."""
  found = _current().activations.get(name, ())
  return (found,) if isinstance(found, str) else tuple(found)


def axis_size(axis: str) -> int:
  """Devices along an axis of the mesh in force; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[axis]


def spec(names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
  """Where an activation lies; everything whole without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return PartitionSpec()
  return partition_spec(names, shape, mesh, _current().activations)


def constrain(x: Array, *names: str | None) -> Array:
  """An activation, where it belongs."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names, x.shape))


def used(weight: Array, names: Sequence[str | None]) -> Array:
  """A stored weight as a layer multiplies with it."""
  mesh, stored = jax.sharding.get_abstract_mesh(), _current().stored
  if mesh.empty or stored is None:
    return weight
  at_rest = partition_spec(names, weight.shape, mesh, stored)
  return _used(weight, at_rest, spec(names, weight.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _used(weight: Array, stored: PartitionSpec, using: PartitionSpec) -> Array:
  # The barrier keeps the cast to the width of the computation before the gather.
  weight = jax.lax.with_sharding_constraint(weight, stored)
  return jax.lax.with_sharding_constraint(weight, using)


def _used_forward(weight: Array, stored: PartitionSpec, using: PartitionSpec):
  return _used(weight, stored, using), None


def _used_backward(stored: PartitionSpec, using: PartitionSpec, _, gradient: Array):
  del using
  return (jax.lax.with_sharding_constraint(gradient, stored),)


_used.defvjp(_used_forward, _used_backward)
