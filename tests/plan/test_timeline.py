"""Times of small schedules against sums by hand: what is hidden, what is waited for."""

import pytest

from lpm_jax.plan import timeline
from lpm_jax.plan.links import Group, Links
from lpm_jax.plan.schedule import Array, Operation, Schedule

CLOCK = 100.0  # cycles a second
LINKS = Links(memory=1000.0, axis=50.0, dcn=5.0, host=10.0, closes=2)


def operation(name: str, opcode: str = "fusion", **changes) -> Operation:
  plain = dict(arrays=(), operands=(), moved=0, cycles=0, source="", part="", groups=())
  plain |= dict(kernel=False, read=(), body="", trips=1)
  return Operation(name=name, opcode=opcode, **(plain | changes))


def gather(name: str, part: str = "", **changes) -> Operation:
  arrays = (Array((100,), 100, "HBM"),) * (2 if part == "start" else 1)
  return operation(name, "all-gather", arrays=arrays, part=part, **changes)


def play(*operations: Operation, **others) -> timeline.Timeline:
  machine = timeline.Machine(
    lambda op: op.cycles / CLOCK,
    LINKS,
    lambda op: 3.0,
    lambda groups: (Group(2, axes=((2, True),)), "fsdp"),
  )
  return timeline.run(Schedule("main", {"main": operations, **others}), machine)


ONE = 1.0  # a gather of 100 bytes sends half of them around a ring of 50 bytes a second


def test_the_parts_of_a_step():
  found = play(
    operation("product", cycles=200, moved=500),  # 2 s, of which memory needs half
    operation("add", cycles=10, moved=1100),  # 1.1 s for memory, 0.1 s for the compiler
    operation("attention", "custom-call", kernel=True, cycles=999),
    gather("g"),
  )
  assert (found.cycles, found.kernels) == (pytest.approx(2.1), 3.0)
  assert found.memory == pytest.approx(1.0) and found.exposed == pytest.approx(ONE)
  assert found.total() == pytest.approx(7.1)


def test_a_loop_counts_as_often_as_it_turns():
  body = (operation("product", cycles=50), gather("g"))
  found = play(operation("while", "while", body="body", trips=20), body=body)
  assert found.cycles == pytest.approx(10.0) and found.exposed == pytest.approx(20 * ONE)
  (moved,) = found.moved
  assert (moved.count, moved.bytes, moved.asynchronous) == (20, 2000, 0)
  assert (moved.kind, moved.axis, moved.network, moved.group) == ("all-gather", "fsdp", "ICI", 2)


@pytest.mark.parametrize(("cycles", "exposed"), [(0, 1.0), (40, 0.6), (100, 0.0), (500, 0.0)])
def test_work_between_start_and_end_hides_a_collective(cycles, exposed):
  found = play(
    gather("g", "start"), operation("product", cycles=cycles), gather("e", "done", operands=("g",))
  )
  assert found.exposed == pytest.approx(exposed)
  assert found.moved[0].asynchronous == 1 and found.moved[0].seconds == pytest.approx(ONE)


def test_two_collectives_share_the_network():
  found = play(
    gather("g", "start"),
    gather("h", "start"),
    operation("product", cycles=150),
    gather("e", "done", operands=("g",)),
    gather("f", "done", operands=("h",)),
  )
  assert found.exposed == pytest.approx(0.5)


def test_a_copy_to_the_host_has_a_network_of_its_own():
  away = (Array((100,), 100, "host"), Array((100,), 100, "HBM"))
  found = play(
    operation("c", "copy", arrays=away, part="start"),
    gather("g"),
    operation("d", "copy", part="done", operands=("c",)),
  )
  assert found.exposed == pytest.approx(10.0)  # the gather's second is one of these ten
  assert {m.network for m in found.moved} == {"host", "ICI"}


def test_a_start_without_an_end_is_not_hidden():
  assert play(gather("g", "start")).exposed == pytest.approx(ONE)
