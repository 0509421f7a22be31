"""Predicted times against sums by hand; layouts against the rules that they state."""

import dataclasses
import itertools

import pytest

from lpm_jax.plan import chips, predict
from lpm_jax.plan.program import Traffic
from lpm_jax.plan.stages import STAGES, StagePlan

CHIP = chips.Chip(flops=1e12, hbm=100.0, ring=1e9, kernel_share=0.5, slices=())


def stage_plan(stage: str = "backbone", devices: int = 4, **changes) -> StagePlan:
  plain = StagePlan(stage, devices, 10, 5, 0, 0, (), ())
  return dataclasses.replace(plain, **changes)


def test_the_three_parts_of_a_stage():
  plan = stage_plan(cycles=int(chips.CLOCK / 100), kernel_flops=int(2e9))
  time = predict.stage_time(plan, CHIP, hidden=0.0)
  assert dataclasses.astuple(time) == pytest.approx((10.0, 4.0, 0.0))
  assert time.total() == pytest.approx(14.0) and time.bound() == "compute"


@pytest.mark.parametrize(
  ("kind", "result", "sent"),
  [
    ("all-reduce", 800, 2 * 700),  # every part goes round twice
    ("all-gather", 800, 700),
    ("reduce-scatter", 100, 700),  # its result is one part
    ("all-to-all", 800, 700),
    ("collective-permute", 800, 800),
  ],
)
def test_bytes_that_a_device_of_a_ring_sends(kind, result, sent):
  moved = Traffic(kind, 8, 3, result * 10**6)
  time = predict.stage_time(stage_plan(traffic=(moved,), cycles=0), CHIP, hidden=0.25)
  assert time.exposed == pytest.approx(0.75 * sent * 1e6 / CHIP.ring * 1e3)


def test_layouts_are_within_the_devices_and_the_best_that_fits_comes_first():
  sizes = (2, 4)
  plans = {(s, n): stage_plan(s, n, arguments=160 // n) for s in STAGES for n in sizes}
  times = {(s, n): predict.StageTime(100.0 / n, 0.0, 0.0) for s, n in plans}
  found = predict.layouts(plans, times, devices=8, chip=CHIP)
  assert {sum(n for _, n in layout.groups) for layout in found} == {2, 4, 6, 8}
  assert all([s for group, _ in layout.groups for s in group] == list(STAGES) for layout in found)
  together = next(x for x in found if x.groups == ((STAGES, 4),))
  assert together.hbm == 3 * 40 + 5 and not together.fits and together.period == 75.0
  apart = next(x for x in found if x.name() == "backbone 4 | refiner 2 | decoder 2")
  assert apart.fits and apart.period == 50.0 and apart.latency == 25.0 + 50.0 + 50.0
  assert apart.binds == "refiner: compute"
  for better, worse in itertools.pairwise(found):
    assert (not better.fits, better.period) <= (not worse.fits, worse.period)


def test_a_stage_that_was_not_compiled_is_in_no_layout():
  plans = {("backbone", 4): stage_plan(), ("refiner", 4): stage_plan("refiner")}
  times = dict.fromkeys(plans, predict.StageTime(1.0, 0.0, 0.0))
  assert predict.layouts(plans, times, devices=8, chip=CHIP) == []


@pytest.mark.parametrize("wrong", ["v4:2x2x1", "v6e", ""])
def test_topologies_that_are_not_known(wrong):
  with pytest.raises(ValueError, match="expected one of v5p:AxB"):
    chips.chip_of(wrong)
