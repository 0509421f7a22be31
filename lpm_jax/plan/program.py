"""The text of a compiled TPU program: its computations and how often loops turn."""

import re

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")


def computations(text: str) -> tuple[dict[str, list[str]], str | None]:
  """Lines of each computation, and the name of the first one that runs."""
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


def trips(condition: list[str], name: str) -> int:
  """How often a loop turns, the constant in its condition; ValueError without one."""
  constants = [int(c) for c in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(condition))]
  if not constants:
    raise ValueError(f"program text: no trip count in {name}")
  return max(constants)
