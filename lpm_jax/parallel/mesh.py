"""The device mesh: data, fsdp, context and tensor axes from a config."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh

MESH_AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(shape: Mapping[str, int], devices: list | None = None) -> Mesh:
  """A mesh over all devices; axes not named are 1, one axis may be -1 (whatever is left).

  Raises ValueError when an axis is unknown or the sizes do not multiply to the device count.
  """
  devices = jax.devices() if devices is None else devices
  unknown = set(shape) - set(MESH_AXES)
  if unknown:
    raise ValueError(f"sharding.mesh: unknown axes {sorted(unknown)}, expected {MESH_AXES}")
  sizes = [int(shape.get(axis, 1)) for axis in MESH_AXES]
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and known and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if min(sizes) < 1 or math.prod(sizes) != len(devices):
    found = dict(zip(MESH_AXES, sizes, strict=True))
    raise ValueError(f"sharding.mesh: found {found}, expected a product of {len(devices)} devices")
  return jax.make_mesh(
    tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices
  )
