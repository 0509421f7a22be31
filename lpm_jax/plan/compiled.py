"""A lowered program, compiled: its memory, its text, or why it does not fit."""

import collections
import dataclasses
import importlib.util
import re

import jax

from lpm_jax.plan import program
from lpm_jax.plan.schedule import Operation, Schedule

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Made:
  """What the compiler leaves.

  Attributes:
    statistics: its memory analysis; None when the program does not fit.
    text: of the scheduled program; "" where the compiler cannot print it.
    refused: why there is no program; "" when there is one.
    needed: bytes of memory that a program which does not fit would need, as far as it says.
    needed_for: "all", or "temporaries" beside state and batch.
  """

  statistics: object | None
  text: str
  refused: str = ""
  needed: int | None = None
  needed_for: str = "all"


def compile_step(traced: jax.stages.Traced, options: dict[str, str]) -> Made:
  """Compiles for the devices of the traced program's shardings."""
  try:
    made = traced.lower().compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if "HbmOom" not in message and "RESOURCE_EXHAUSTED" not in message:
      raise
    return refusal(message)
  try:
    text = made.as_text()
  except jax.errors.JaxRuntimeError:  # libtpu 0.0.52: programs whose collectives run on SparseCores
    text = ""
  return Made(made.memory_analysis(), text)


def refusal(message: str) -> Made:
  """No program: it needs more memory than there is, as the compiler's message says."""
  found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of|temporaries \(([\d.]+)([KMGT])\)", message)
  needed, of = None, "all"
  if found:
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    needed, of = int(float(number) * _UNITS[unit]), "all" if found[1] else "temporaries"
  return Made(None, "", message.splitlines()[0], needed, of)


def compiler_is_there() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def costliest(read: Schedule, clock: float, count: int) -> list[dict]:
  """Traced operations with the most estimated seconds, loops counted."""
  totals: collections.Counter = collections.Counter()

  def visit(name: str, times: int):
    for op in read.computations[name]:
      if op.body:
        visit(op.body, times * op.trips)
      elif not op.kernel and op.opcode not in program.COLLECTIVES:
        totals[_title(op)] += times * op.cycles

  visit(read.entry, 1)
  return [{"operation": k, "seconds": v / clock} for k, v in totals.most_common(count)]


def _title(op: Operation) -> str:
  shapes = " ".join(f"{list(array.dims)}" for array in op.arrays[:3])
  source = re.sub(r"^jit\(\w+\)/", "", op.source)
  return f"{op.opcode} {source} {shapes}"
