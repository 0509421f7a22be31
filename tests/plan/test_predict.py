"""Predicted times against sums by hand; layouts against the rules that they state."""

import dataclasses
import itertools

import pytest

from lpm_jax.plan import chips, predict, schedule
from lpm_jax.plan.stages import STAGES, StagePlan

CHIP = chips.Chip(flops=1e12, hbm=100.0, ring=1e9, kernel_share=0.1, slices=(), chunk_share=0.5)
MEMORY = 1e12
WORK = round(0.01 * chips.CLOCK)  # cycles: 10 ms


def stage_plan(stage: str = "backbone", devices: int = 4, **changes) -> StagePlan:
  plain = StagePlan(stage, devices, 10, 5, 0, None)
  return dataclasses.replace(plain, **changes)


def program_of(collective: str) -> str:
  """A text with 10 ms of work and one kernel between the lines of a collective."""
  start, _, end = collective.partition("|")
  work = f'backend_config={{"window_config":{{"estimated_cycles":"{WORK}"}}}}'
  return f"""
ENTRY %main (x: f32[1000,250]) -> f32[] {{
  {start}
  %work = f32[] fusion(%x), kind=kLoop, {work}
  %kernel = f32[] custom-call(%work), custom_call_target="tpu_custom_call"
  {end}
}}
"""


def time_of(collective: str, **changes) -> predict.StageTime:
  read = schedule.read_schedule(program_of(collective))
  return predict.stage_time(stage_plan(schedule=read, **changes), CHIP, MEMORY)[0]


def test_the_parts_of_a_stage():
  time = time_of("", kernel_flops=int(2e9))
  assert (time.compute, time.kernels, time.exposed) == pytest.approx((10.0, 4.0, 0.0))
  assert time.memory == 0.0
  assert time.total() == pytest.approx(14.0) and time.bound() == "compute"


@pytest.mark.parametrize(
  ("kind", "shape", "sent"),
  [
    ("all-reduce", "f32[1000,250]", 1.5),  # 1 MB, every part goes round twice
    ("all-gather", "f32[1000,250]", 0.75),
    ("reduce-scatter", "f32[250,250]", 0.75),  # its result is one part
  ],
)
def test_a_collective_without_start_and_end_stops_everything(kind, shape, sent):
  time = time_of(f"%moved = {shape} {kind}(%x), replica_groups={{{{0,1,2,3}}}}")
  assert (time.exposed, time.hidden) == (pytest.approx(sent), pytest.approx(0.0))


@pytest.mark.parametrize("size", [1, 40])  # 0.75 ms and 30 ms on the ring, beside 10 of work
def test_a_collective_is_hidden_behind_what_lies_between_its_start_and_its_end(size):
  groups = "replica_groups={{0,1,2,3}}"
  shape = f"(f32[{size * 250},250], f32[{size * 1000},250])"
  start = f"%start = {shape} all-gather-start(%x), {groups}"
  end = f"%done = f32[{size * 1000},250] all-gather-done(%start)"
  time = time_of(f"{start}|{end}")
  assert time.exposed == pytest.approx(max(0.0, 0.75 * size - 10.0))
  assert time.hidden == pytest.approx(min(0.75 * size, 10.0))


def test_layouts_are_within_the_devices_and_the_best_that_fits_comes_first():
  sizes = (2, 4)
  plans = {(s, n): stage_plan(s, n, arguments=160 // n) for s in STAGES for n in sizes}
  times = {(s, n): predict.StageTime(100.0 / n, 0.0, 0.0, 0.0) for s, n in plans}
  found = predict.layouts(plans, times, devices=8, chip=CHIP)
  assert {sum(n for _, n in layout.groups) for layout in found} == {2, 4, 6, 8}
  assert all([s for group, _ in layout.groups for s in group] == list(STAGES) for layout in found)
  together = next(x for x in found if x.groups == ((STAGES, 4),))
  assert together.hbm == 3 * 40 + 5 and not together.fits and together.period == 75.0
  apart = next(x for x in found if x.name() == "backbone 4 | refiner 2 | decoder 2")
  assert apart.fits and apart.period == 50.0 and apart.latency == 25.0 + 50.0 + 50.0
  assert apart.binds == "refiner: compute"
  shared = predict.layouts(plans, times, devices=4, chip=CHIP)
  shared = next(x for x in shared if x.name() == "backbone 2 | refiner 2 | decoder 4")
  assert shared.hbm == 80 + 5 + 40 and shared.period == 50.0 + 25.0 and shared.latency == 125.0
  for better, worse in itertools.pairwise(found):
    assert (not better.fits, better.period) <= (not worse.fits, worse.period)


def test_a_stage_that_was_not_compiled_is_in_no_layout():
  plans = {("backbone", 4): stage_plan(), ("refiner", 4): stage_plan("refiner")}
  times = dict.fromkeys(plans, predict.StageTime(1.0, 0.0, 0.0, 0.0))
  assert predict.layouts(plans, times, devices=8, chip=CHIP) == []


@pytest.mark.parametrize("wrong", ["v4:2x2x1", "v6e", ""])
def test_topologies_that_are_not_known(wrong):
  with pytest.raises(ValueError, match="expected one of v5p:AxB"):
    chips.chip_of(wrong)
