"""What a prediction assumes about a chip, in one place; `config.assume` replaces single numbers."""

import dataclasses

from lpm_jax.plan import chips
from lpm_jax.plan.chips import Chip
from lpm_jax.plan.links import LINKS, Links

KERNEL_SOURCES = {
  "v5p": "assumed; whole training steps with such kernels reach 55 % (Flux, maxdiffusion README) "
  "and 51-61 % (8B, 256k-1M tokens, maxtext PR 4755)",
  "v6e": "assumed; 128 channels a head fill half of the 256 x 256 matrix unit; sampling Wan2.2 at "
  "720p reaches 28 % of the peak as a whole (maxdiffusion PR 376)",
  "tpu7x": "assumed; sampling Wan2.2 at 720p reaches 48-54 % of the peak as a whole, training 33 % "
  "(maxdiffusion PRs 436, 452, 487)",
}


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """Peaks, bandwidths and efficiencies of one kind of device.

  Attributes:
    chip: see chips.CHIPS; its `kernel_share` is the share of the peak that kernels reach.
    links: see links.LINKS.
    clock: Hz of the compiler's estimated cycles.
    kernel_source: where `kernel_share` comes from.
    changed: names of the numbers that the config replaced.
  """

  chip: Chip
  links: Links
  clock: float
  kernel_source: str
  changed: tuple[str, ...] = ()

  def peak(self) -> float:
    """FLOP/s of a whole chip, which on tpu7x is two devices."""
    return self.chip.flops * self.links.cores


def assumptions(topology: str, changes: str = "") -> Assumptions:
  """Those of a topology's chip.

  Args:
    changes: "kernel_share=0.5,dcn=25e9": fields of Chip and Links, and clock.

  Raises ValueError for a name that is not known, or no number.
  """
  chip = chips.chip_of(topology)
  name = topology.split(":")[0]
  found = Assumptions(chip, LINKS[name], chips.CLOCK, KERNEL_SOURCES[name])
  of_chip = {"flops", "hbm", "kernel_share", "product_share", "elementwise_share"}
  of_links = {field.name for field in dataclasses.fields(Links)}
  changed = []
  for part in filter(None, changes.split(",")):
    key, _, value = part.partition("=")
    known = of_chip | of_links | {"clock"}
    try:
      number = float(value)
    except ValueError:
      number = None
    if key not in known or number is None:
      raise ValueError(f"assume: found {part!r}, expected NAME=NUMBER, NAME one of {sorted(known)}")
    changed.append(key)
    if key in of_chip:
      found = dataclasses.replace(found, chip=dataclasses.replace(found.chip, **{key: number}))
    elif key in of_links:
      number = int(number) if key in ("closes", "cores") else number
      found = dataclasses.replace(found, links=dataclasses.replace(found.links, **{key: number}))
    else:
      found = dataclasses.replace(found, clock=number)
  source = "given with --config.assume" if "kernel_share" in changed else found.kernel_source
  return dataclasses.replace(found, kernel_source=source, changed=tuple(changed))
