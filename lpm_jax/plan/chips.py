"""TPU chips as the planner sees them: peaks are published, efficiencies are assumptions."""

import dataclasses
import os
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device: a chip, or half of one on tpu7x.

  Attributes:
    flops: peak of bf16 products, per second.
    hbm: bytes of memory that the compiler lets a program have.
    ring: bytes a second that a device sends around a ring of one torus axis, both ways together
      (maxtext's custom_model.md: peak / arithmetic intensity of one axis).
    kernel_share: of the peak that attention kernels reach at 128 channels a head. An assumption:
      v5p as for Wan2.1's training step; on v6e and tpu7x products of 256 x 256 are half empty.
    chunk_share: the same of the kernel of streams (chunk_attention.py). On v6e and tpu7x nine
      tenths, for waiting that no schedule shows, of the 0.51 of its scheduled bundles
      (`python -m benchmarks.chunk_kernel`); a kernel without running maximum carries whole runs of
      Wan2.2 at 720p to 0.54 on tpu7x (maxdiffusion PR 452). v5p: as `kernel_share`.
    product_share, elementwise_share: of the peak that matrix products reach, and of HBM's bytes
      that everything else does, where the compiler does not say; as it says of the 480p steps on
      v5p and, with 390 tokens of a grid on a device, v6e. tpu7x: as v6e.
    slices: shapes that hold a group of devices, by their number; a stage is compiled for one.
  """

  flops: float
  hbm: float
  ring: float
  kernel_share: float
  slices: tuple[tuple[int, str], ...]
  chunk_share: float = 0.46
  product_share: float = 0.66
  elementwise_share: float = 0.67


CLOCK = 1.75e9  # Hz of the compiler's estimated cycles
CHIPS = {
  "v5p": Chip(459e12, 95.73 * 2**30, 180e9, 0.6, ((4, "2x2x1"), (8, "2x2x2")), 0.6, 0.92, 0.41),
  "v6e": Chip(918e12, 31.24 * 2**30, 180e9, 0.4, ((4, "2x2"), (8, "2x4"))),
  "tpu7x": Chip(1153.5e12, 94.74 * 2**30, 180e9, 0.5, ((8, "2x2x1"),)),
}


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as "v6e:2x4"; ValueError names those that are known."""
  name = topology.split(":")[0]
  if name not in CHIPS or ":" not in topology:
    known = ", ".join(f"{chip}:AxB" for chip in CHIPS)
    raise ValueError(f"topology: found {topology!r}, expected one of {known}")
  return CHIPS[name]


def slices_of(topology: str) -> tuple[str, int]:
  """Name of a slice and how many there are: "v5p:4x4x8,slices=2" are two."""
  name, _, rest = topology.partition(",")
  if not rest:
    return name, 1
  found = re.fullmatch(r"slices=(\d+)", rest)
  if not found or not int(found[1]):
    raise ValueError(f"topology: found {topology!r}, expected CHIP:AxB,slices=N")
  return name, int(found[1])


def devices_of(topology: str) -> list:
  """Devices of an absent topology, for the compiler; ValueError without libtpu or such a place."""
  chip_of(topology)
  name, slices = slices_of(topology)
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes compile at once
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **({"num_slices": slices} if slices > 1 else {})
    )
    return list(found.devices)
  except Exception as error:
    raise ValueError(
      f"topology {topology}: the TPU compiler cannot be had ({error}); pip install libtpu"
    ) from error
