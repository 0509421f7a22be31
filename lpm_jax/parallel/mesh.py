"""The device mesh: data, fsdp, context and tensor axes from a config."""

import math
from collections.abc import Mapping

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

MESH_AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(
  shape: Mapping[str, int], devices: list | None = None, slices: Mapping[str, int] | None = None
) -> Mesh:
  """A mesh over all devices; axes not named are 1, one axis may be -1 (whatever is left).

  Args:
    shape: devices along each axis.
    devices: by default all.
    slices: along which axes the slices of a multi-slice job lie, each the outer part of its axis;
      by default all along data. Between slices is the data-centre network.

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
  axis_types = (AxisType.Auto,) * len(sizes)
  count = len({getattr(device, "slice_index", 0) for device in devices})
  if count == 1:
    try:
      return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=axis_types, devices=devices)
    except NotImplementedError:  # 64 of 16 x 16 chips are 16 x 4: an axis of the torus is cut
      placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
      return Mesh(placed, MESH_AXES, axis_types=axis_types)
  outer = [int((slices or {"data": count}).get(axis, 1)) for axis in MESH_AXES]
  if math.prod(outer) != count or any(n % m for n, m in zip(sizes, outer, strict=True)):
    found = dict(zip(MESH_AXES, outer, strict=True))
    raise ValueError(
      f"sharding.slices: found {found}, expected divisors of the mesh with a product of {count}"
    )
  inner = [n // m for n, m in zip(sizes, outer, strict=True)]
  placed = mesh_utils.create_hybrid_device_mesh(
    inner, outer, devices, allow_split_physical_axes=True
  )
  return Mesh(placed, MESH_AXES, axis_types=axis_types)
