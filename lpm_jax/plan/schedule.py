"""The compiled program in the order in which it runs: what each instruction reads, makes and sends.

Read from the text of a scheduled TPU program. Bytes are those that go through HBM: arrays that the
compiler keeps in on-chip memory count nothing, and of a stack of which a slice is taken, the slice.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np

from lpm_jax.plan import program
from lpm_jax.plan.branches import Shares, share_of
from lpm_jax.plan.chips import Chip

ON_CHIP = re.compile(r"S\((?!5\))[1-9]\d*\)")  # memory spaces other than HBM (0) and host (5)
ON_HOST = "S(5)"
FREE = frozenset(
  "get-tuple-element bitcast tuple parameter constant while call conditional".split()
)

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([^\s,()]+)")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a result: bytes and where it lies ("HBM", "host" or "chip")."""

  dims: tuple[int, ...]
  bytes: int
  place: str


@dataclasses.dataclass(frozen=True)
class Operation:
  """One instruction of a computation.

  Attributes:
    name, opcode: of the instruction; a wrapped or fused collective has the opcode of what it does.
    arrays: its results.
    operands: names.
    moved: bytes read from and written to HBM.
    cycles: the compiler's estimate; 0 without one.
    source: name of the traced operation.
    part: "" for all at once, "start" and "done" for asynchronous ones.
    groups: devices of each group of a collective, by their place in the mesh; () for all.
    kernel: whether it is a Pallas kernel.
    read: of a kernel, the shapes of its operands.
    body, trips: of a loop, or a called computation with one trip.
    share: of a conditional, in how many steps the longest branch, its body, is taken.
    products: operations of the matrix products in it.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  moved: int
  cycles: int
  source: str
  part: str
  groups: tuple[tuple[int, ...], ...]
  kernel: bool
  read: tuple[tuple[int, ...], ...]
  body: str
  trips: int
  products: int = 0
  share: float = 1

  def times(self) -> float:
    """How often the body runs, in the mean of steps."""
    return self.trips if self.share == 1 else self.trips * self.share

  def result(self) -> int:
    """Bytes of the result; of an asynchronous start, those that the operation will leave."""
    if self.part != "start":
      return sum(array.bytes for array in self.arrays)
    data = [array for array in self.arrays if array.dims]
    return sum(array.bytes for array in data[len(data) // 2 :])  # (operands, results, flags)


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Computations of a program; `entry` names the first."""

  entry: str
  computations: dict[str, tuple[Operation, ...]]

  def estimate(self, clock: float, chip: Chip, memory: float) -> Callable[[Operation], float]:
    """Seconds of an instruction that is no kernel and moves nothing between devices.

    The compiler's cycles at a clock or, in a program for which it made no machine code, the
    products in it at a share of the chip's peak; what has none at a share of `memory`, the bytes a
    second of HBM.
    """
    if self.has_cycles():
      return lambda op: op.cycles / clock
    flops, memory = chip.flops * chip.product_share, memory * chip.elementwise_share
    return lambda op: op.products / flops or (0.0 if op.part else op.moved / memory)

  def has_cycles(self) -> bool:
    """Whether the compiler estimated how long instructions take."""
    return any(op.cycles for ops in self.computations.values() for op in ops)


def read_schedule(text: str, shares: Shares | None = None) -> Schedule:
  """The schedule of a program's text; ValueError for a text without an entry.

  `shares` say how often the longest branches of conditionals are taken (branches.py); what other
  branches do is left out.
  """
  bodies, entry = program.computations(text)
  if entry is None:
    raise ValueError("program text: no ENTRY computation")
  reader = _Reader(bodies, shares or {})
  return Schedule(entry, reader.reached(entry))


class _Reader:
  def __init__(self, bodies: dict[str, list[str]], shares: Shares):
    self._bodies, self._shares = bodies, shares

  def reached(self, entry: str) -> dict[str, tuple[Operation, ...]]:
    found, waiting = {}, [entry]
    while waiting:
      name = waiting.pop()
      if name not in found:
        found[name] = self._operations(name)
        waiting += [o.body for o in found[name] if o.body]
    return found

  def _operations(self, name: str) -> tuple[Operation, ...]:
    parsed = [p for p in map(_parsed, self._bodies[name]) if p]
    arrays = {label: _arrays(shape) for label, shape, _, _ in parsed}
    return _sent_at_update(tuple(self._operation(*p, arrays) for p in parsed))

  def _operation(self, label: str, shape: str, opcode: str, rest: str, arrays: dict) -> Operation:
    call, _, attributes = rest.partition(")")
    operands = tuple(_NAME.findall(call))
    body, trips, inner = "", 1, ""
    if opcode == "while":
      condition, body = (
        re.search(rf"{key}=%([^,\s]+)", attributes)[1] for key in ("condition", "body")
      )
      trips = program.trips(self._bodies[condition], condition)
    elif opcode == "call":
      body = re.search(r"to_apply=%([^,\s]+)", attributes)[1]
    elif opcode == "conditional":
      body = self._longest_branch(attributes)
    else:
      called = re.search(r"calls=%([^,\s]+)", attributes)
      inner = called[1] if called else ""
    kind, part, holder = self._collective(opcode, label, inner)
    groups_of = "".join(self._bodies[holder]) if holder else rest
    estimate = re.search(r'"estimated_cycles":"(\d+)"', rest)
    found = re.search(r'op_name="([^"]*)"', rest)
    source = found[1] if found else ""
    return Operation(
      name=label,
      opcode=kind,
      arrays=arrays[label],
      operands=operands,
      moved=0 if opcode in FREE else self._moved(label, operands, arrays, inner),
      cycles=int(estimate[1]) if estimate else 0,
      source=source,
      part=part,
      groups=_groups(groups_of) if kind in program.COLLECTIVES else (),
      kernel="tpu_custom_call" in rest,
      read=_shapes(operands, arrays) if "tpu_custom_call" in rest else (),
      body=body,
      trips=trips,
      products=self._products(inner) if inner else _product(shape, opcode, rest, arrays),
      share=share_of(source, self._shares) if opcode == "conditional" else 1,
    )

  def _collective(self, opcode: str, label: str, inner: str) -> tuple[str, str, str]:
    """Opcode, part, and the computation that holds a wrapped collective."""
    kind, part = opcode, ""
    for suffix in ("start", "done", "update"):
      if opcode.endswith(f"-{suffix}"):
        kind, part = opcode.removesuffix(f"-{suffix}"), suffix
    if kind in program.COLLECTIVES or not inner:
      return kind, part, ""
    if inner.startswith("all-reduce-scatter"):  # how the compiler spells a reduce-scatter
      return "reduce-scatter", part, inner
    deeper = re.search(r"called_computations=\{%([^}]+)\}", "".join(self._bodies.get(inner, ())))
    inner = deeper[1] if deeper else inner  # what SparseCores do is wrapped twice
    held = _sends(self._bodies.get(inner, ()))
    return held or kind, part, inner if held else ""

  def _longest_branch(self, attributes: str) -> str:
    branches = re.findall(r"(?:true|false)_computation=%([^,\s]+)", attributes)
    listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    branches += [b.strip(" %") for b in listed[1].split(",")] if listed else []
    return max(branches, key=lambda b: len(self._bodies[b]), default="")

  def _moved(self, label: str, operands: tuple[str, ...], arrays: dict, inner: str) -> int:
    read, written = self._touched(inner) if inner else ({}, None)
    total = _hbm(arrays[label]) if written is None else min(written, _hbm(arrays[label]))
    for index, operand in enumerate(operands):
      whole = _hbm(arrays.get(operand, ()))
      total += min(whole, read.get(index, whole))
    return total

  @functools.cache  # noqa: B019 - lives as long as the reader
  def _products(self, name: str) -> int:
    """Operations of the products in a computation and in those that it calls."""
    parsed = [p for p in map(_parsed, self._bodies.get(name, ())) if p]
    arrays = {label: _arrays(shape) for label, shape, _, _ in parsed}
    total = sum(_product(shape, opcode, rest, arrays) for _, shape, opcode, rest in parsed)
    called = (re.search(r"calls=%([^,\s]+)", rest) for _, _, _, rest in parsed)
    return total + sum(self._products(inner[1]) for inner in called if inner)

  @functools.cache  # noqa: B019 - lives as long as the reader
  def _touched(self, name: str) -> tuple[dict[int, int], int | None]:
    """Bytes of parameters of which a fusion takes slices only; bytes written, if a slice only."""
    parsed = [p for p in map(_parsed, self._bodies.get(name, ())) if p]
    numbers = {
      label: int(re.match(r"\d+", rest)[0]) for label, _, op, rest in parsed if op == "parameter"
    }
    sizes = {label: sum(a.bytes for a in _arrays(shape)) for label, shape, _, _ in parsed}
    read: dict[int, int] = {}
    whole: set[int] = set()
    written = None
    for label, _, op, rest in parsed:
      operands = _NAME.findall(rest.partition(")")[0])
      for place, operand in enumerate(operands):
        if operand not in numbers:
          continue
        index = numbers[operand]
        if op in ("dynamic-slice", "slice"):
          read[index] = read.get(index, 0) + sizes[label]
        elif op == "dynamic-update-slice" and place == 0:
          read[index] = read.get(index, 0)
          written = (written or 0) + sizes[operands[1]]
        else:
          whole.add(index)
    return {index: size for index, size in read.items() if index not in whole}, written


def _sent_at_update(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
  """A collective of SparseCores is made ready at its start; the update gives it what it sends."""
  begun = {
    op.name: op for op in operations if op.part == "start" and op.opcode in program.COLLECTIVES
  }
  ready = {op.operands[0]: op for op in operations if op.part == "update" and op.operands}
  found = []
  for op in operations:
    if op.name in begun and op.name in ready:
      op = dataclasses.replace(op, opcode="async", part="", moved=0, arrays=(), groups=())
    elif op.part == "update" and op.operands and op.operands[0] in begun:
      start = begun[op.operands[0]]
      sent = [array for array in op.arrays if array.dims][
        1:2
      ]  # (what goes in, what comes out, ...)
      op = dataclasses.replace(
        op, opcode=start.opcode, part="start", groups=start.groups, arrays=tuple(sent)
      )
    found.append(op)
  return tuple(found)


def _parsed(line: str) -> tuple[str, str, str, str] | None:
  found = program.INSTRUCTION.match(line)
  return found.groups() if found else None


def _product(shape: str, opcode: str, rest: str, arrays: dict) -> int:
  """Operations of a matrix product, which the compiler spells as a convolution; 0 of others.

  A dimension of the window adds up unless it is padded or dilated: so the compiler spells
  dimensions that both sides have, or one alone.
  """
  if opcode != "convolution":
    return 0
  _, factor, _ = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest).groups()
  (right,) = arrays[_NAME.findall(rest.partition(")")[0])[1]]
  window = dict(re.findall(r"(\w+)=(\S+)", (re.search(r"window=\{([^}]*)\}", rest) or [""] * 2)[1]))
  sizes = [int(size) for size in window.get("size", "").split("x") if size]
  pads, dilated = (
    window[key].split("x") if key in window else [plain] * len(sizes)
    for key, plain in (("pad", "0_0"), ("lhs_dilate", "1"))
  )
  summed = [s for s, p, d in zip(sizes, pads, dilated, strict=True) if (p, d) == ("0_0", "1")]
  results = math.prod(_arrays(shape)[0].dims)
  return 2 * results * right.dims[factor.index("i")] * math.prod(summed)


def _arrays(shape: str) -> tuple[Array, ...]:
  return tuple(_array(*found) for found in _ARRAY.findall(shape))


def _array(kind: str, dims: str, layout: str) -> Array:
  sizes = tuple(int(d) for d in dims.split(",")) if dims else ()
  bits = _BITS.search(kind)
  place = "host" if ON_HOST in layout else "chip" if ON_CHIP.search(layout) else "HBM"
  return Array(sizes, math.prod(sizes) * (int(bits[0]) if bits else 8) // 8, place)


def _shapes(operands: tuple[str, ...], arrays: dict) -> tuple[tuple[int, ...], ...]:
  return tuple(array.dims for operand in operands for array in arrays.get(operand, ()))


def _hbm(arrays: tuple[Array, ...]) -> int:
  return sum(array.bytes for array in arrays if array.place == "HBM")


def _sends(lines: list[str]) -> str:
  """The collective in a computation, "" without one."""
  for line in lines:
    found = _parsed(line)
    if found and found[2] in program.COLLECTIVES:
      return found[2]
  return ""


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
  """Groups of devices in any notation; () means all devices."""
  listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest)
  if listed:
    return tuple(
      tuple(int(d) for d in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1])
    )
  mesh = re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", rest)
  if mesh:
    return _mesh_groups(*mesh.groups())
  iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
  if iota:
    sizes = [int(d) for d in iota[3].split(",")]
    order = [int(d) for d in iota[4].split(",")] if iota[4] else list(range(len(sizes)))
    return _ordered(sizes, order, int(iota[2]))
  return ()


def _mesh_groups(axes: str, along: str) -> tuple[tuple[int, ...], ...]:
  """Groups along some axes of a mesh, "'x'=4,'y'=2", or along a part of one, "'x':(2)2"."""
  sizes: list[int] = []
  where: dict[str, list[int]] = {}
  for name, size in re.findall(r"'([^']+)'=(\d+)", axes):
    part = re.search(rf"'{re.escape(name)}':\((\d+)\)(\d+)", along)
    before, inner = (int(part[1]), int(part[2])) if part else (1, int(size))
    where[name] = [len(sizes) + 1]
    sizes += [before, inner, int(size) // (before * inner)]
  chosen = [place for name in re.findall(r"'([^']+)'", along) for place in where[name]]
  rest = [place for place in range(len(sizes)) if place not in chosen]
  return _ordered(sizes, [*rest, *chosen], math.prod(sizes[place] for place in chosen))


def _ordered(sizes: list[int], order: list[int], size: int) -> tuple[tuple[int, ...], ...]:
  """Places of a grid, its axes in another order, in groups of `size`."""
  places = np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(-1, size)
  return tuple(map(tuple, places.tolist()))
