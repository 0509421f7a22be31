"""Texts of TPU programs in order: bytes through HBM, groups of devices, starts and ends."""

import pytest

from lpm_jax.plan import compiled, schedule
from lpm_jax.plan.chips import Chip

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


def chip_of(flops: float) -> Chip:
  """One whose shares are whole."""
  return Chip(flops, 1.0, 1.0, 1.0, (), product_share=1.0, elementwise_share=1.0)


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


def test_a_sum_with_a_part_taken_is_a_reduce_scatter():
  """As the compiler for TPUs spells it: a fusion."""
  text = """
%all-reduce-scatter.1 (x: f32[8,128]) -> f32[4,128] {
  %sum = f32[8,128] all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (x: f32[8,128]) -> f32[4,128] {
  ROOT %part = f32[4,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  (part,) = schedule.read_schedule(text).computations["main"]
  assert (part.opcode, part.part, part.groups) == ("reduce-scatter", "", ((0, 1),))
  assert part.result() == 4 * 128 * 4


def test_what_costs_most_counts_loops_and_neither_kernels_nor_collectives():
  text = """
%condition (state: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(20)
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %product = bf16[8,128]{1,0} fusion(%x), kind=kOutput, metadata={op_name="jit(run)/dot"},\
 backend_config={"window_config":{"estimated_cycles":"70"}}
  %all = f32[8,128]{1,0} all-reduce(%product), replica_groups={{0,1},{2,3}}, to_apply=%add
  %splash = f32[8,128]{1,0} custom-call(%all), custom_call_target="tpu_custom_call"
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %copy = f32[8,128]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"5"}}
  %while = (s32[], f32[8,128]) while(%copy), condition=%condition, body=%body
}
"""
  read = schedule.read_schedule(text)
  assert [op.name for op in read.computations["body"] if op.kernel] == ["splash"]
  assert read.computations["main"][-1].trips == 20
  found = compiled.costliest(read, lambda op: op.cycles, 3)
  assert [(one["operation"], one["seconds"]) for one in found] == [
    ("fusion dot [8, 128]", 20 * 70),
    ("copy  [8, 128]", 5),
  ]


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


@pytest.mark.parametrize(
  ("result", "left", "right", "spelled", "sizes"),
  [  # as the compiler spells them, and the sizes of the product
    ("bf16[6,4]", "bf16[6,8]", "bf16[8,4]", "dim_labels=bf_io->bf", (6, 8, 4)),
    ("bf16[8,4]", "bf16[6,8]", "bf16[6,4]", "dim_labels=fb_io->bf", (8, 6, 4)),
    (
      "bf16[3,6,4]",
      "bf16[3,6,8]",
      "bf16[8,4,1]",
      "window={size=1}, dim_labels=0bf_io0->0bf",
      (18, 8, 4),
    ),
    (
      "bf16[8,4,1]",
      "bf16[3,6,8]",
      "bf16[3,6,4]",
      "window={size=3}, dim_labels=0fb_0io->bf0",
      (8, 18, 4),
    ),
    (
      "bf16[4,3,6]",
      "bf16[8,4,1]",
      "bf16[3,6,8]",
      "window={size=3 pad=2_2 rhs_reversal=1}, dim_labels=fb0_0oi->b0f",
      (4, 8, 18),
    ),
    (
      "bf16[5,6,4]",
      "bf16[5,8,6]",
      "bf16[8,5,4]",
      "window={size=5 stride=4 lhs_dilate=5}, dim_labels=0fb_i0o->0bf",
      (5 * 6, 8, 4),
    ),
  ],
)
def test_operations_of_products(result, left, right, spelled, sizes):
  text = f"""
%fused (a: {left}, b: {right}) -> {result} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %product = {result} convolution(%a, %b), {spelled}
}}

ENTRY %main (a: {left}, b: {right}) -> {result} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %fusion = {result} fusion(%a, %b), kind=kOutput, calls=%fused
}}
"""
  read = schedule.read_schedule(text)
  rows, inner, columns = sizes
  operation = read.computations["main"][-1]
  assert operation.products == 2 * rows * inner * columns
  assert read.estimate(1.0, chip_of(flops=2.0), 1.0)(operation) == rows * inner * columns


def test_without_cycles_what_has_no_product_takes_its_bytes_through_memory():
  read = schedule.read_schedule(TEXT.replace('"estimated_cycles":"7"', '"x":"7"'))
  found = {op.name: op for op in read.computations[read.entry]}
  estimate = read.estimate(1.0, chip_of(flops=1.0), 2.0)
  assert not read.has_cycles() and estimate(found["back"]) == found["back"].moved / 2.0
  assert estimate(found["plain"]) == 0.0, "collectives have a time of their own"


SPARSE_CORES = """
%gathered (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[32,128]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}
}

%wrapped (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %custom-call = f32[32,128]{1,0} custom-call(%x), called_computations={%gathered}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %call-start = ((), (), (s32[8192]{0}, s32[1]{0:S(2)})) async-start(), calls=%wrapped
  %near = f32[8,128]{1,0} copy(%x)
  %call-update = ((f32[8,128]{1,0}), f32[32,128]{1,0}, (s32[8192]{0}))\
 async-update(%call-start, %near)
  ROOT %call-done = f32[32,128]{1,0} async-done(%call-update)
}
"""


def test_what_sparse_cores_gather_is_on_its_way_from_the_update_on():
  read = schedule.read_schedule(SPARSE_CORES)
  start, _, update, done = read.computations["main"][1:]
  assert (start.opcode, start.part, start.moved) == ("async", "", 0)
  assert (update.opcode, update.part, update.groups) == ("all-gather", "start", ((0, 1, 2, 3),))
  assert update.result() == 4 * ROW
  assert done.part == "done" and done.operands == ("call-update",)
