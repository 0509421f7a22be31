"""TPU slices as Google Cloud names them: chips, hosts, and what each platform calls them.

An accelerator type counts TensorCores, so v5p-256 and tpu7x-256 are 128 chips and v6e-256 is 256.
`FAMILY:TOPOLOGY` (v5p:4x4x8), the name `lpm plan` uses, counts chips and says the same.
Source: Cloud TPU and GKE documentation; the same table as xpk's (tests/launch/test_xpk.py).
"""

import dataclasses
import difflib
import math


@dataclasses.dataclass(frozen=True)
class Family:
  """One TPU generation.

  Attributes:
    cores: TensorCores per chip, which accelerator types count.
    devices: JAX devices per chip.
    gke: value of the node label `cloud.google.com/gke-tpu-accelerator`.
    machine: machine type of a host with four chips.
    runtime: software version of a TPU VM; empty where TPU VMs cannot be had.
    topologies: chips along each axis, for every slice of more than one host.
  """

  cores: int
  devices: int
  gke: str
  machine: str
  runtime: str
  topologies: tuple[str, ...]


_CUBES = ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

FAMILIES = {
  "v5p": Family(2, 1, "tpu-v5p-slice", "ct5p-hightpu-4t", "v2-alpha-tpuv5", _CUBES),
  "v6e": Family(
    1,
    1,
    "tpu-v6e-slice",
    "ct6e-standard-4t",
    "v2-alpha-tpuv6e",
    ("4x4", "4x8", "8x8", "8x16", "16x16"),
  ),
  # The Cloud TPU API, and with it queued resources, ends before TPU7x.
  "tpu7x": Family(2, 2, "tpu7x", "tpu7x-standard-4t", "", _CUBES),
}
CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Slice:
  """One slice: its family's name, its topology in chips, e.g. v5p and 4x4x8."""

  family: str
  topology: str

  @property
  def kind(self) -> Family:
    return FAMILIES[self.family]

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.topology.split("x")))

  @property
  def hosts(self) -> int:
    return self.chips // CHIPS_PER_HOST

  @property
  def devices(self) -> int:
    """JAX devices of the slice."""
    return self.chips * self.kind.devices

  @property
  def accelerator_type(self) -> str:
    return f"{self.family}-{self.chips * self.kind.cores}"


SLICES = tuple(Slice(name, t) for name, family in FAMILIES.items() for t in family.topologies)
_BY_TYPE = {s.accelerator_type: s for s in SLICES}


def _sorted(topology: str) -> str:
  """8x8x4 is 4x8x8: Google Cloud names the axes in ascending order."""
  return "x".join(sorted(topology.split("x"), key=lambda side: (len(side), side)))


def find_slice(accelerator: str, topology: str = "") -> Slice:
  """The slice of an accelerator type (v5p-256) or of FAMILY:TOPOLOGY (v5p:4x4x8).

  Args:
    accelerator: the name.
    topology: what the caller believes its topology to be, in any order of axes; "" to not say.

  Raises:
    ValueError: names what was found and what is known.
  """
  family, colon, named = accelerator.partition(":")
  if colon:
    found = next((s for s in SLICES if (s.family, s.topology) == (family, _sorted(named))), None)
    known = [f"{s.family}:{s.topology}" for s in SLICES]
  else:
    found, known = _BY_TYPE.get(accelerator), list(_BY_TYPE)
  if found is None:
    near = difflib.get_close_matches(accelerator, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
      f"accelerator: found {accelerator!r}{hint}, expected one of {', '.join(known)}"
    )
  if topology and _sorted(topology) != found.topology:
    raise ValueError(
      f"topology: found {topology}, expected {found.topology}, which {accelerator} is "
      f"({found.chips} chips)"
    )
  return found
