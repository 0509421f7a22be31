"""From compiled stages to the time of a chunk. A model of time: nothing here is measured.

A stage is played as its program says (timeline.py): everything but kernels and collectives as the
compiler estimates it (cycles at its clock) or, where it does not, products at a share of the peak;
kernels at another (chips.py), bytes that HBM delivers no faster, and collectives around one ring. A
collective is hidden only behind what the program has between its start and its end; one without
them stops everything.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from lpm_jax.plan import timeline
from lpm_jax.plan.chips import CLOCK, Chip
from lpm_jax.plan.links import Group, Links
from lpm_jax.plan.schedule import Schedule
from lpm_jax.plan.stages import STAGES, StagePlan


@dataclasses.dataclass(frozen=True)
class StageTime:
  """Predicted milliseconds of one stage for one chunk."""

  compute: float
  kernels: float
  memory: float
  exposed: float
  hidden: float = 0.0  # of collectives, behind the others

  def total(self) -> float:
    """All but what is hidden."""
    return self.compute + self.kernels + self.memory + self.exposed

  def bound(self) -> str:
    """The largest part."""
    parts = dataclasses.asdict(self)
    del parts["hidden"]
    return max(parts, key=parts.get)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Groups of stages, each group on devices of its own.

  Attributes:
    groups: stages of each group, and how many devices it has; a decoder that has all of them shares
      them with the others.
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


def stage_time(
  plan: StagePlan, chip: Chip, memory: float
) -> tuple[StageTime, tuple[timeline.Moved, ...]]:
  """The time of a stage and what it moves between devices; `memory` is HBM's bytes a second.

  Calls of kernels count alike: their sum is what matters, and little is hidden behind them.
  """
  ring = Links(memory=memory, axis=chip.ring, dcn=1.0, host=1.0, closes=0)
  calls = _kernel_calls(plan.schedule, plan.schedule.entry)
  each = plan.kernel_flops / (chip.flops * chip.chunk_share) / max(calls, 1)

  def group(places: tuple[tuple[int, ...], ...]) -> tuple[Group, str]:
    size = max(map(len, places), default=plan.devices)
    return Group(size, axes=((size, True),)), ""

  estimate = plan.schedule.estimate(CLOCK, chip, memory)
  played = timeline.run(plan.schedule, timeline.Machine(estimate, ring, lambda _: each, group))
  sent = sum(moved.seconds for moved in played.moved)
  parts = played.cycles, played.kernels, played.memory, played.exposed, sent - played.exposed
  return StageTime(*(1e3 * part for part in parts)), played.moved


def _kernel_calls(schedule: Schedule, name: str) -> int:
  return sum(
    op.trips * _kernel_calls(schedule, op.body) if op.body else op.kernel
    for op in schedule.computations[name]
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
  whole = "decoder", devices
  if whole in plans:
    for groups in _without_decoder(plans, devices):
      apart = _layout(groups, plans, times, chip)
      found.append(_decoding_on_all(apart, plans[whole], times[whole], chip))
  return sorted(found, key=lambda layout: (not layout.fits, layout.period, layout.latency))


def _counts(plans: dict, grouping: Sequence, devices: int) -> Iterator[tuple[int, ...]]:
  sizes = sorted({count for _, count in plans})
  for counts in itertools.product(sizes, repeat=len(grouping)):
    there = all((STAGES[i], n) in plans for g, n in zip(grouping, counts, strict=True) for i in g)
    if there and sum(counts) <= devices:
      yield counts


def _without_decoder(plans: dict, devices: int) -> Iterator[tuple]:
  """Backbone and refiner on all devices, each with its own."""
  for counts in _counts(plans, ((0,), (1,)), devices):
    if sum(counts) == devices:
      yield tuple(((stage,), count) for stage, count in zip(STAGES, counts, strict=False))


def _decoding_on_all(apart: Layout, decoder: StagePlan, time: StageTime, chip: Chip) -> Layout:
  """A layout of backbone and refiner whose devices decode together, between their chunks."""
  hbm = apart.hbm + decoder.arguments  # its temporaries are less than those of the others
  return dataclasses.replace(
    apart,
    groups=(*apart.groups, (("decoder",), decoder.devices)),
    hbm=hbm,
    latency=apart.latency + time.total(),
    period=apart.period + time.total(),
    fits=hbm <= chip.hbm,
  )


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
