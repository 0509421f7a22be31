"""From a schedule to seconds: what computes, what waits for memory, what waits for the network.

A model of time (docs/plan.md). One instruction after the other: each takes the longer of an
estimate and the time its bytes need to go through HBM; a kernel takes its operations at a share of
the peak. A synchronous collective stops everything. An asynchronous one is on its network from its
start on, behind those that started before it, and its end waits for what is left.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from lpm_jax.plan import links, program
from lpm_jax.plan.links import Group, Links
from lpm_jax.plan.schedule import Operation, Schedule


@dataclasses.dataclass(frozen=True)
class Moved:
  """Collectives of one kind along the same mesh axes, on one device and in one step.

  Attributes:
    kind: opcode, or "host copy".
    axis: mesh axes, such as "fsdp" or "data+fsdp".
    network: one of links.NETWORKS.
    group: devices.
    count: how often, in the mean where branches are not always taken.
    bytes: of the results.
    seconds: on the network.
    exposed: seconds of them during which nothing else happens.
    asynchronous: how many of them have a start and an end.
  """

  kind: str
  axis: str
  network: str
  group: int
  count: float
  bytes: float
  seconds: float
  exposed: float
  asynchronous: float


@dataclasses.dataclass(frozen=True)
class Timeline:
  """Predicted seconds of a step on one device.

  Attributes:
    cycles: as estimated, of all but kernels and collectives.
    kernels: of Pallas kernels.
    memory: beyond those, for bytes that HBM cannot deliver in that time.
    exposed: waiting for collectives and host copies.
    moved: all collectives.
  """

  cycles: float
  kernels: float
  memory: float
  exposed: float
  moved: tuple[Moved, ...]

  def total(self) -> float:
    """All parts."""
    return self.cycles + self.kernels + self.memory + self.exposed


@dataclasses.dataclass(frozen=True)
class Machine:
  """What the time of an instruction depends on.

  Attributes:
    estimate: time of any other instruction, but for what its bytes need.
    links: bandwidths.
    kernel_seconds: time of a kernel's call.
    group: the group and mesh axes of a collective's groups (places in the mesh).
  """

  estimate: Callable[[Operation], float]
  links: Links
  kernel_seconds: Callable[[Operation], float]
  group: Callable[[tuple[tuple[int, ...], ...]], tuple[Group, str]]


def run(schedule: Schedule, machine: Machine) -> Timeline:
  """Plays the program."""
  return _Player(schedule, machine).play(schedule.entry)


class _Player:
  def __init__(self, schedule: Schedule, machine: Machine):
    self._schedule, self._machine = schedule, machine
    self._played: dict[str, Timeline] = {}

  def play(self, name: str) -> Timeline:
    if name not in self._played:
      self._played[name] = self._play(self._schedule.computations[name])
    return self._played[name]

  def _play(self, operations: Sequence[Operation]) -> Timeline:
    cycles = kernels = memory = exposed = 0.0
    moved: list[Moved] = []
    networks = {name: _Network() for name in links.NETWORKS}
    starts: dict[str, tuple[str, int]] = {}

    def pass_time(seconds: float):
      for network in networks.values():
        network.advance(seconds)

    for op in operations:
      if op.body:
        inner, times = self.play(op.body), op.times()
        cycles += times * inner.cycles
        kernels += times * inner.kernels
        memory += times * inner.memory
        exposed += times * inner.exposed
        moved += [_repeated(one, times) for one in inner.moved]
        pass_time(times * inner.total())
        continue
      sent = self._sent(op)
      if sent and op.part == "":
        exposed += sent.seconds
        for name, network in networks.items():
          if name != sent.network:
            network.advance(sent.seconds)
        moved.append(dataclasses.replace(sent, exposed=sent.seconds))
      elif sent:
        starts[op.name] = (sent.network, len(moved))
        networks[sent.network].start(op.name, sent.seconds)
        moved.append(dataclasses.replace(sent, asynchronous=1))
      elif op.part == "done" and op.operands and op.operands[0] in starts:
        network, place = starts.pop(op.operands[0])
        wait = networks[network].left(op.operands[0])
        pass_time(wait)
        exposed += wait
        moved[place] = dataclasses.replace(moved[place], exposed=wait)
      else:
        own = self._machine.estimate(op)
        of_kernel = self._machine.kernel_seconds(op) if op.kernel else 0.0
        least = op.moved / self._machine.links.memory if op.part == "" else 0.0
        cycles, kernels = cycles + (0.0 if op.kernel else own), kernels + of_kernel
        busy = of_kernel if op.kernel else own
        memory += max(0.0, least - busy)
        pass_time(max(busy, least))
    for name, (network, place) in starts.items():  # never ended here: nothing is known to hide it
      wait = networks[network].left(name)
      exposed += wait
      moved[place] = dataclasses.replace(moved[place], exposed=wait)
    return Timeline(cycles, kernels, memory, exposed, _summed(moved))

  def _sent(self, op: Operation) -> Moved | None:
    """A collective or a copy between host and device, at its start."""
    if op.part not in ("", "start"):
      return None
    if op.opcode in program.COLLECTIVES:
      group, axis = self._machine.group(op.groups)
      time = links.seconds(op.opcode, op.result(), group, self._machine.links)
      return Moved(op.opcode, axis, group.network(), group.size, 1, op.result(), time, 0.0, 0)
    if op.opcode == "copy" and op.part == "start":
      places = {array.place for array in op.arrays if array.dims}
      if "host" in places:
        time = op.result() / self._machine.links.host
        return Moved("host copy", "", "host", 1, 1, op.result(), time, 0.0, 0)
    return None


class _Network:
  """Transfers one after the other."""

  def __init__(self):
    self._waiting: dict[str, float] = {}

  def start(self, name: str, seconds: float):
    self._waiting[name] = seconds

  def advance(self, seconds: float):
    for name, left in self._waiting.items():
      used = min(left, seconds)
      self._waiting[name] = left - used
      seconds -= used

  def left(self, name: str) -> float:
    """Seconds until a transfer is done, with those before it."""
    total = 0.0
    for other, left in self._waiting.items():
      total += left
      if other == name:
        break
    return total


def _repeated(one: Moved, times: float) -> Moved:
  return dataclasses.replace(
    one,
    count=one.count * times,
    bytes=one.bytes * times,
    seconds=one.seconds * times,
    exposed=one.exposed * times,
    asynchronous=one.asynchronous * times,
  )


def _summed(moved: Sequence[Moved]) -> tuple[Moved, ...]:
  keys = ("kind", "axis", "network", "group")
  totals: Mapping = collections.defaultdict(lambda: [0, 0, 0.0, 0.0, 0])
  for one in moved:
    total = totals[tuple(getattr(one, key) for key in keys)]
    numbers = (one.count, one.bytes, one.seconds, one.exposed, one.asynchronous)
    total[:] = [a + b for a, b in zip(total, numbers, strict=True)]
  return tuple(Moved(*key, *total) for key, total in sorted(totals.items()))
