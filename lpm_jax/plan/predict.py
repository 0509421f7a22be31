"""From compiled stages to the time of a chunk. A model of time: nothing here is measured.

A stage takes the sum of three parts: what the compiler estimates for everything but kernels and
collectives (cycles at its clock), kernels at an assumed share of the peak, and collectives around
one ring, of which an assumed share is hidden behind work.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from lpm_jax.plan.chips import CLOCK, Chip
from lpm_jax.plan.stages import STAGES, StagePlan


@dataclasses.dataclass(frozen=True)
class StageTime:
  """Predicted milliseconds of one stage for one chunk."""

  compute: float
  kernels: float
  exposed: float

  def total(self) -> float:
    """All three parts."""
    return self.compute + self.kernels + self.exposed

  def bound(self) -> str:
    """The largest part."""
    parts = dataclasses.asdict(self)
    return max(parts, key=parts.get)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Groups of stages, each group on devices of its own.

  Attributes:
    groups: stages of each group, and how many devices it has.
    hbm: bytes of the fullest device.
    latency: predicted milliseconds from noise to frames.
    period: predicted milliseconds between chunks: groups work at the same time.
    binds: group and part that take longest.
    fits: whether `hbm` is within the chip's memory.
  """

  groups: tuple[tuple[tuple[str, ...], int], ...]
  hbm: int
  latency: float
  period: float
  binds: str
  fits: bool

  def name(self) -> str:
    """Such as "backbone 4 | refiner + decoder 4"."""
    return " | ".join(f"{' + '.join(stages)} {count}" for stages, count in self.groups)


def stage_time(plan: StagePlan, chip: Chip, hidden: float) -> StageTime:
  """The time of a stage whose program could be read; `hidden` is a share of its collectives."""
  wire = sum(_wire_bytes(moved.kind, moved.group, moved.bytes) for moved in plan.traffic)
  return StageTime(
    compute=1e3 * plan.cycles / CLOCK,
    kernels=1e3 * plan.kernel_flops / (chip.flops * chip.kernel_share),
    exposed=1e3 * (1.0 - hidden) * wire / chip.ring,
  )


def layouts(
  plans: dict[tuple[str, int], StagePlan],
  times: dict[tuple[str, int], StageTime],
  devices: int,
  chip: Chip,
) -> list[Layout]:
  """All ways to put the stages on `devices`: those that fit first, by period, then latency."""
  found = []
  for grouping in (((0, 1, 2),), ((0,), (1, 2)), ((0,), (1,), (2,))):
    for counts in _counts(plans, grouping, devices):
      groups = tuple(
        (tuple(STAGES[i] for i in members), count)
        for members, count in zip(grouping, counts, strict=True)
      )
      found.append(_layout(groups, plans, times, chip))
  return sorted(found, key=lambda layout: (not layout.fits, layout.period, layout.latency))


def _counts(plans: dict, grouping: Sequence, devices: int) -> Iterator[tuple[int, ...]]:
  sizes = sorted({count for _, count in plans})
  for counts in itertools.product(sizes, repeat=len(grouping)):
    there = all((STAGES[i], n) in plans for g, n in zip(grouping, counts, strict=True) for i in g)
    if there and sum(counts) <= devices:
      yield counts


def _layout(groups: tuple, plans: dict, times: dict, chip: Chip) -> Layout:
  of_group = [[times[stage, count] for stage in stages] for stages, count in groups]
  totals = [sum(time.total() for time in group) for group in of_group]
  slowest = max(range(len(groups)), key=totals.__getitem__)
  longest = max(range(len(of_group[slowest])), key=lambda i: of_group[slowest][i].total())
  hbm = max(
    sum(plans[stage, count].arguments for stage in stages)
    + max(plans[stage, count].temporaries for stage in stages)
    for stages, count in groups
  )
  stage = groups[slowest][0][longest]
  return Layout(
    groups=groups,
    hbm=hbm,
    latency=sum(totals),
    period=totals[slowest],
    binds=f"{stage}: {of_group[slowest][longest].bound()}",
    fits=hbm <= chip.hbm,
  )


def _wire_bytes(kind: str, group: int, result: int) -> float:
  """What one device of a ring sends, from the bytes of the collective's results."""
  share = {
    "all-reduce": 2 * (group - 1) / group,
    "all-gather": (group - 1) / group,
    "reduce-scatter": group - 1,
    "all-to-all": (group - 1) / group,
    "collective-permute": 1,
  }
  return result * share[kind]
