"""Computations and trip counts of a program's text."""

import pytest

from lpm_jax.plan import program

TEXT = """HloModule jit_run, is_scheduled=true

%condition (state: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(20)
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %all = f32[8,128]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %while = (s32[], f32[8,128]) while(%x), condition=%condition, body=%body
}
"""


def test_computations_and_the_one_that_runs_first():
  bodies, entry = program.computations(TEXT)
  assert set(bodies) == {"condition", "body", "main"} and entry == "main"
  assert program.trips(bodies["condition"], "condition") == 20
  assert program.computations("HloModule empty")[1] is None


def test_a_loop_without_a_count_is_refused():
  with pytest.raises(ValueError, match="no trip count in body"):
    program.trips(program.computations(TEXT)[0]["body"], "body")
