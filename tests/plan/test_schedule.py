"""Texts of TPU programs in order: bytes through HBM, groups of devices, starts and ends."""

import pytest

from lpm_jax.plan import schedule

TEXT = """HloModule jit_step, is_scheduled=true

%slice_of (param_0.1: f32[40,8,128], param_1.1: s32[]) -> f32[1,8,128] {
  %param_0.1 = f32[40,8,128]{2,1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  ROOT %taken = f32[1,8,128]{2,1,0} dynamic-slice(%param_0.1, %param_1.1)
}

%update_of (param_0.2: f32[40,8,128], param_1.2: f32[1,8,128], param_2.2: s32[]) -> f32[40,8,128] {
  %param_0.2 = f32[40,8,128]{2,1,0} parameter(0)
  %param_1.2 = f32[1,8,128]{2,1,0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  ROOT %put = f32[40,8,128]{2,1,0} dynamic-update-slice(%param_0.2, %param_1.2, %param_2.2)
}

%wrapped (x: f32[8,128]) -> f32[32,128] {
  ROOT %inner = f32[32,128]{1,0} all-gather(%x), replica_groups=GROUPS, dimensions={0}
}

ENTRY %main (stack: f32[40,8,128], i: s32[]) -> f32[1,8,128] {
  %stack = f32[40,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %slice = f32[1,8,128]{2,1,0} fusion(%stack, %i), calls=%slice_of,\
 backend_config={"window_config":{"estimated_cycles":"7"}}
  %back = f32[40,8,128]{2,1,0} fusion(%stack, %slice, %i), kind=kLoop, calls=%update_of
  %near = f32[1,8,128]{2,1,0:T(8,128)S(1)} copy(%slice)
  %gather = ((f32[8,128]{1,0}), f32[32,128]{1,0}, u32[]{:S(2)}) async-start(%near), calls=%wrapped
  %plain = (f32[8,128]{1,0}, f32[32,128]{1,0}, u32[], u32[]) all-gather-start(%near),\
 replica_groups=GROUPS
  %done = f32[32,128]{1,0} all-gather-done(%plain)
  %away = (f32[8,128]{1,0:S(5)}, f32[8,128]{1,0}, u32[]) copy-start(%done)
}
"""
ROW = 8 * 128 * 4


def operations(groups: str = "{{0,1,2,3}}") -> dict[str, schedule.Operation]:
  read = schedule.read_schedule(TEXT.replace("GROUPS", groups))
  return {op.name: op for op in read.computations[read.entry]}


def test_of_a_stack_only_the_slice_goes_through_memory():
  found = operations()
  index = 4
  assert found["slice"].moved == 2 * ROW + index and found["slice"].cycles == 7
  assert found["back"].moved == 2 * ROW + index  # the update is read, and written in place
  assert found["near"].moved == ROW  # its result stays on the chip


def test_starts_ends_and_what_they_leave():
  found = operations()
  assert (found["plain"].opcode, found["plain"].part) == ("all-gather", "start")
  assert found["plain"].result() == 4 * ROW
  assert (found["done"].opcode, found["done"].part) == ("all-gather", "done")
  assert found["done"].operands == ("plain",)
  assert [array.place for array in found["away"].arrays if array.dims] == ["host", "HBM"]


def test_a_wrapped_collective_is_what_it_wraps():
  wrapped = operations()["gather"]
  assert (wrapped.opcode, wrapped.part, wrapped.groups) == ("all-gather", "start", ((0, 1, 2, 3),))
  assert wrapped.result() == 4 * ROW


@pytest.mark.parametrize(
  ("notation", "groups"),
  [
    ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
  ],
)
def test_groups_of_devices_in_every_notation(notation, groups):
  assert operations(notation)["plain"].groups == groups


def test_a_text_that_cannot_be_read_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    schedule.read_schedule("HloModule empty")
