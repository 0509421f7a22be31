"""Texts of TPU programs: loops turn, kernels and collectives are told from the rest."""

import pytest

from lpm_jax.plan import program

TEXT = """HloModule jit_run

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (state: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(20)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %product = bf16[8,128]{1,0:T(8,128)} fusion(%x), kind=kOutput, metadata={op_name="jit(run)/dot"},\
 backend_config={"window_config":{"estimated_cycles":"70"}}
  %all = f32[8,128]{1,0} all-reduce(%product), replica_groups={{0,1},{2,3}}, to_apply=%add
  %splash = f32[8,128]{1,0} custom-call(%all), custom_call_target="tpu_custom_call"
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %copy = f32[8,128]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"5"}}
  %while = (s32[], f32[8,128]) while(%copy), condition=%condition, body=%body
}
"""


def test_a_loop_counts_as_often_as_it_turns():
  found = program.instructions(TEXT)
  assert program.cycles(found) == 20 * 70 + 5
  assert program.traffic(found) == [program.Traffic("all-reduce", 2, 20, 20 * 8 * 128 * 4)]
  kernels = [(i.name, i.times) for i in found if i.kernel]
  assert kernels == [("splash", 20)]
  assert program.costliest(found, 1) == [("fusion jit(run)/dot bf16[8,128]", 1400)]


def test_a_sum_with_a_part_taken_is_a_reduce_scatter():
  """As the compiler for TPUs spells it: a fusion."""
  called = """%all-reduce-scatter.1 (x: f32[8,128]) -> f32[4,128] {
  %sum = f32[8,128] all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

%condition ("""
  fusion = """  %part = f32[4,128]{1,0} fusion(%all), kind=kCustom, calls=%all-reduce-scatter.1
  %splash ="""
  scattered = TEXT.replace("%condition (", called, 1).replace("  %splash =", fusion)
  moved = program.traffic(program.instructions(scattered))
  assert moved[1:] == [program.Traffic("reduce-scatter", 2, 20, 20 * 4 * 128 * 4)]


def test_a_text_that_cannot_be_read_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    program.instructions("HloModule empty")
  with pytest.raises(ValueError, match="no trip count in condition"):
    program.instructions(TEXT.replace("constant(20)", "parameter(0)"))


@pytest.mark.parametrize(
  ("groups", "size"),
  [("{{0,1,2}}", 3), ("[2,4]<=[8]", 4), ("mesh['a'=2,'b'=4] {'b'}", 4)],
)
def test_groups_of_collectives_in_every_notation(groups, size):
  found = program.instructions(TEXT.replace("{{0,1},{2,3}}", groups))
  assert [moved.group for moved in program.traffic(found)] == [size]
