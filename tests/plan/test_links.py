"""Times of collectives against sums by hand; which axes and networks a group reaches."""

import types

import numpy as np
import pytest

from lpm_jax.plan import links
from lpm_jax.plan.links import Group, Links

PLAIN = Links(memory=1e12, axis=100.0, dcn=10.0, host=1.0, closes=4)
RING = ((8, True),)


@pytest.mark.parametrize(
  ("kind", "result", "bytes_sent"),
  [
    ("all-reduce", 800, 1400),  # every part goes round twice
    ("all-gather", 800, 700),
    ("reduce-scatter", 100, 700),  # its result is one part
    ("all-to-all", 800, 1600),  # a quarter of 8 x 800 crosses each of two cuts of the ring
    ("collective-permute", 800, 800),
  ],
)
def test_time_around_a_ring(kind, result, bytes_sent):
  time = links.seconds(kind, result, Group(8, axes=RING), PLAIN)
  assert time == pytest.approx(bytes_sent / PLAIN.axis)


def test_every_axis_of_the_torus_adds_bandwidth_and_an_open_one_half():
  alone = links.seconds("all-gather", 800, Group(8, axes=RING), PLAIN)
  both = links.seconds("all-gather", 800, Group(8, axes=((4, True), (2, False))), PLAIN)
  assert both == pytest.approx(alone / 1.5)


def test_devices_of_a_chip_share_its_links():
  halves = Links(memory=1e12, axis=100.0, dcn=10.0, host=1.0, closes=4, cores=2)
  group = Group(8, axes=RING)
  alone = links.seconds("all-gather", 800, group, PLAIN)
  assert links.seconds("all-gather", 800, group, halves) == pytest.approx(2 * alone)


def test_between_slices_the_data_centre_network_binds():
  group = Group(2, slices=2)
  assert group.network() == "DCN"
  assert links.seconds("all-reduce", 100, group, PLAIN) == pytest.approx(2 * 50 / PLAIN.dcn)


def devices_of(shape: tuple[int, ...], slices: int = 1) -> list:
  return [
    types.SimpleNamespace(coords=coords, slice_index=i)
    for i in range(slices)
    for coords in np.ndindex(*shape)
  ]


def test_a_group_extends_along_the_axes_in_which_its_places_differ():
  devices = devices_of((4, 4, 2))
  line = [d for d in devices if d.coords[1:] == (0, 0)]
  assert links.group_of(line, devices, PLAIN) == Group(4, 1, ((4, True),))
  plane = [d for d in devices if d.coords[0] == 0]
  assert links.group_of(plane, devices, PLAIN) == Group(8, 1, ((4, True), (2, False)))
  part = [d for d in line if d.coords[0] < 2]
  assert links.group_of(part, devices, PLAIN) == Group(2, 1, ((2, False),))


def test_a_group_of_two_slices_is_seen():
  devices = devices_of((2, 1, 1), slices=2)
  assert links.group_of(devices[::2], devices, PLAIN).slices == 2
  assert links.group_of(devices[:2], devices, PLAIN).slices == 1


@pytest.mark.parametrize(
  ("groups", "axis"),
  [
    (((0, 1, 2, 3), (4, 5, 6, 7)), "fsdp"),
    (((0, 4), (1, 5), (2, 6), (3, 7)), "data"),
    ((tuple(range(8)),), "data+fsdp"),
    (((0,), (1,)), ""),
  ],
)
def test_the_mesh_axis_of_a_collective(groups, axis):
  mesh = types.SimpleNamespace(devices=np.zeros((2, 4)), axis_names=("data", "fsdp"))
  assert links.axis_of(mesh, groups) == axis
