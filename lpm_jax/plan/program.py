"""What a compiled TPU program does, read from its text: cycles, collectives and kernels.

The text is that of `compiled.as_text()`. A loop counts as often as it turns: its trip count is the
constant in its condition.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_NUMBER_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction, executed `times` times in a run of the program.

  Attributes:
    name: of the instruction.
    opcode: HLO opcode; that of a kernel is "custom-call".
    shape: text of the result's shape.
    times: how often it runs.
    cycles: the compiler's estimate for one run; 0 without one.
    source: name of the traced operation.
    group: devices that take part in a collective; 1 otherwise.
    kernel: whether it is a Pallas kernel.
  """

  name: str
  opcode: str
  shape: str
  times: int
  cycles: int
  source: str
  group: int = 1
  kernel: bool = False

  def bytes(self) -> int:
    """Size of the result."""
    return sum(_array_bytes(*found) for found in _ARRAY.findall(self.shape))


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind and group size, for one device and one run of the program."""

  kind: str
  group: int
  count: int
  bytes: int


def instructions(text: str) -> list[Instruction]:
  """Every instruction that takes time, with how often it runs.

  Raises ValueError for a text without an entry, or a loop whose trip count cannot be read.
  """
  bodies, entry = computations(text)
  if entry is None:
    raise ValueError("program text: no ENTRY computation")
  return list(_walk(bodies, entry, 1))


def traffic(found: list[Instruction]) -> list[Traffic]:
  """Collectives by kind and group; bytes are those of the results, each run counted."""
  counts: dict = collections.defaultdict(lambda: [0, 0])
  for instruction in found:
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
      total = counts[kind, instruction.group]
      total[0] += instruction.times
      total[1] += instruction.times * instruction.bytes()
  return [Traffic(*key, *total) for key, total in sorted(counts.items())]


def cycles(found: list[Instruction]) -> int:
  """The compiler's estimate of everything but kernels and collectives."""
  return sum(i.times * i.cycles for i in found if not i.kernel and not _collective(i))


def costliest(found: list[Instruction], count: int = 12) -> list[tuple[str, int]]:
  """Traced operations and shapes with the most cycles."""
  totals: dict = collections.Counter()
  for i in found:
    if not i.kernel and not _collective(i):
      totals[f"{i.opcode} {i.source} {_short(i.shape)}"] += i.times * i.cycles
  return totals.most_common(count)


def _collective(instruction: Instruction) -> bool:
  return instruction.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES


def computations(text: str) -> tuple[dict[str, list[str]], str | None]:
  bodies: dict[str, list[str]] = {}
  entry, lines = None, []
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      lines = bodies[head[2]] = []
      entry = head[2] if head[1] else entry
    else:
      lines.append(line)
  return bodies, entry


def _walk(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Instruction]:
  for line in bodies[name]:
    found = INSTRUCTION.match(line)
    if not found:
      continue
    label, shape, opcode, rest = found.groups()
    scatter = re.search(r"calls=%(all-reduce-scatter[^,\s]*)", rest)
    if scatter:  # how the compiler for TPUs spells a reduce-scatter
      opcode, rest = "reduce-scatter", rest + "".join(bodies[scatter[1]])
    if opcode == "while":
      condition, body = (re.search(rf"{key}=%([^,\s]+)", rest)[1] for key in ("condition", "body"))
      yield from _walk(bodies, body, times * trips(bodies[condition], condition))
    elif opcode in ("call", "async-start"):
      called = re.search(r"(?:to_apply|calls|called_computations)=\{?%([^,}\s]+)", rest)
      if called:
        yield from _walk(bodies, called[1], times)
    elif opcode == "conditional":
      branches = re.findall(r"(?:true_computation|false_computation)=%([^,\s]+)", rest)
      listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
      branches += [b.strip(" %") for b in listed[1].split(",")] if listed else []
      each = [list(_walk(bodies, branch, times)) for branch in branches]
      yield from max(each, key=lambda b: sum(i.cycles * i.times for i in b), default=[])
    estimate = re.search(r'"estimated_cycles":"(\d+)"', rest)
    source = re.search(r'op_name="([^"]*)"', rest)
    yield Instruction(
      name=label,
      opcode=opcode,
      shape=shape,
      times=times,
      cycles=int(estimate[1]) if estimate else 0,
      source=source[1] if source else "",
      group=_group(rest),
      kernel="tpu_custom_call" in rest,
    )


def trips(condition: list[str], name: str) -> int:
  constants = [int(c) for c in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(condition))]
  if not constants:
    raise ValueError(f"program text: no trip count in {name}")
  return max(constants)


def _group(rest: str) -> int:
  explicit = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
  if explicit:
    return len(explicit[1].split(","))
  mesh = re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", rest)
  if mesh:
    sizes = dict(axis.split("=") for axis in mesh[1].split(","))
    return math.prod(int(sizes[axis]) for axis in mesh[2].split(","))
  iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
  return int(iota[2]) if iota else 1


def _array_bytes(kind: str, dims: str) -> int:
  bits = _NUMBER_BITS.search(kind)
  count = math.prod(int(d) for d in dims.split(",")) if dims else 1
  return count * (int(bits[0]) if bits else 8) // 8


def _short(shape: str) -> str:
  return " ".join(f"{kind}[{dims}]" for kind, dims in _ARRAY.findall(shape)[:3])
