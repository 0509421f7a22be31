"""How long bytes take between devices, to their memory and to their host: a model, not measured.

Bandwidths are those of public data sheets and of the scaling book (jax-ml.github.io/scaling-book,
"How to think about TPUs"). A collective uses every torus axis along which its group extends; an
axis that does not close into a ring has half of the bandwidth.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

NETWORKS = ("ICI", "DCN", "host")


@dataclasses.dataclass(frozen=True)
class Links:
  """Bandwidths of one JAX device, bytes a second.

  Attributes:
    memory: of HBM.
    axis: sent around one torus axis, both ways together.
    dcn: sent out of the slice, the host's share of a device.
    host: to or from the memory of the host.
    closes: chips of a whole axis from which on it is a ring.
    cores: devices of a chip, which share its links.
  """

  memory: float
  axis: float
  dcn: float
  host: float
  closes: int
  cores: int = 1


LINKS = {
  "v5p": Links(memory=2.765e12, axis=180e9, dcn=6.25e9, host=16e9, closes=4),
  "v6e": Links(memory=1.64e12, axis=180e9, dcn=12.5e9, host=32e9, closes=16),
  "tpu7x": Links(memory=3.69e12, axis=180e9, dcn=6.25e9, host=16e9, closes=4, cores=2),
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Devices of one collective: how far they reach.

  Attributes:
    size: devices.
    slices: slices that it reaches over; more than one means DCN.
    axes: (chips along it, whether it is a ring) of every torus axis along which it extends.
  """

  size: int
  slices: int = 1
  axes: tuple[tuple[int, bool], ...] = ()

  def network(self) -> str:
    """One of NETWORKS."""
    return "DCN" if self.slices > 1 else "ICI"


def group_of(members: Sequence, devices: Sequence, links: Links) -> Group:
  """The group of `members`, some of the `devices` of a topology."""
  slices = {getattr(device, "slice_index", 0) for device in members}
  axes = []
  whole = list(zip(*(device.coords for device in devices), strict=True))
  for own, all_of in zip(zip(*(d.coords for d in members), strict=True), whole, strict=True):
    chips, length = len(set(own)), len(set(all_of))
    if chips > 1:
      axes.append((chips, chips == length and length >= links.closes))
  return Group(len(members), len(slices), tuple(axes))


def axis_of(mesh: Mesh, groups: Sequence[Sequence[int]]) -> str:
  """The mesh axes along which groups of places extend, "fsdp" or "data+fsdp"; "" for none."""
  places = np.array([np.unravel_index(group, mesh.devices.shape) for group in groups[:64]])
  differs = (places != places[:, :, :1]).any(axis=(0, 2))
  return "+".join(axis for axis, there in zip(mesh.axis_names, differs, strict=True) if there)


def seconds(kind: str, result: int, group: Group, links: Links) -> float:
  """Time of one collective from the bytes of its result on a device.

  All-to-all is bounded by what crosses the middle of the longest axis.
  """
  size = group.size
  if size < 2:
    return 0.0
  if group.slices > 1:
    share, bandwidth = 1 - 1 / group.slices, links.dcn
  else:
    share = 1 - 1 / size
    ways = [1.0 if ring else 0.5 for _, ring in group.axes] or [1.0]
    bandwidth = links.axis / links.cores * sum(ways)
  if kind == "collective-permute":
    return result / min(links.axis / links.cores, bandwidth)
  sent = {
    "all-gather": result * share,
    "all-reduce": 2 * result * share,
    "reduce-scatter": size * result * share,
    "all-to-all": result * share,
  }[kind]
  time = sent / bandwidth
  if kind == "all-to-all" and group.slices == 1 and group.axes:
    longest, ring = max(group.axes)
    crossing = result * longest / (4 if ring else 2)
    time = max(time, crossing / (links.axis / links.cores))
  return time


def wire_bytes(kind: str, result: int, size: int) -> float:
  """What one device sends, from the bytes of the collective's result."""
  share = 1 - 1 / max(size, 1)
  return (
    result
    * {
      "all-reduce": 2 * share,
      "all-gather": share,
      "reduce-scatter": size - 1,
      "all-to-all": share,
      "collective-permute": math.ceil(share),
    }[kind]
  )
