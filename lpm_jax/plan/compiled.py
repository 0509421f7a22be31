"""A lowered program, compiled: its memory, its text, or why it does not fit.

Nearly all the time that compiling takes goes into machine code, after layouts, memory and schedule
are settled. What the compiler writes down before it can be had in seconds instead of minutes; what
is missing then are its estimates of cycles.
"""

import collections
import dataclasses
import importlib.util
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import jax
from jax.stages import Compiled, Lowered

from lpm_jax.plan.program import COLLECTIVES
from lpm_jax.plan.schedule import Operation, Schedule

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_POLL = 0.2  # seconds
_SCHEDULE = ".after_optimizations_after_buffer_assignment.txt"  # names of its files
_MEMORY = ".after_optimizations-buffer-assignment.txt"


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device that a program needs, as the compiler placed its arrays.

  Attributes:
    total: arguments, results, temporaries and, where it is known, the program.
    code: of the program; 0 without machine code.
    host: temporaries in the memory of the host.
  """

  total: int
  code: int
  host: int


@dataclasses.dataclass(frozen=True)
class Made:
  """What the compiler leaves.

  Attributes:
    memory: None when the program does not fit.
    text: of the scheduled program; with machine code it has estimates of cycles, unless jaxlib
      cannot print it.
    refused: why there is no program; "" when there is one.
    needed: bytes of memory that a program which does not fit would need, as far as it says.
    needed_for: "all", or "temporaries" beside state and batch.
  """

  memory: Memory | None
  text: str
  refused: str = ""
  needed: int | None = None
  needed_for: str = "all"


def compile_lowered(lowered: Lowered, options: dict[str, str], codegen: bool) -> Made:
  """Compiles for the devices of the program's shardings.

  Without `codegen` the compiler goes on, in a thread, until the process ends.
  """
  with tempfile.TemporaryDirectory(prefix="lpm_plan_", ignore_cleanup_errors=True) as folder:
    written, making = pathlib.Path(folder), Future()
    dumped = options | {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    threading.Thread(target=_compile, args=(making, lowered, dumped), daemon=True).start()
    if not codegen:
      _wait_for_schedule(making, written)
    if codegen or making.done():
      try:
        program = making.result()
      except jax.errors.JaxRuntimeError as error:
        return refusal(error)
    memory, text = (_dumped(written, name) for name in (_MEMORY, _SCHEDULE))
  made = Made(_memory(memory), text)
  return _with_code(made, program) if codegen else made


def _compile(making: Future, lowered: Lowered, options: dict[str, str]):
  try:
    making.set_result(lowered.compile(compiler_options=options))
  except Exception as error:
    making.set_exception(error)


def _wait_for_schedule(making: Future, written: pathlib.Path):
  """Until schedule and report of memory are whole and grow no more, or compiling has ended."""
  sizes = None
  while not making.done():
    before, sizes = sizes, _sizes(written)
    if sizes and sizes == before:
      return
    time.sleep(_POLL)


def _dumped(written: pathlib.Path, name: str) -> str:
  for path in written.glob(f"*{name}"):
    return path.read_text()
  raise RuntimeError(f"the compiler wrote no file *{name}: another libtpu than 0.0.52?")


def _with_code(made: Made, program: Compiled) -> Made:
  """With the size of machine code, and a text that has estimates of cycles."""
  code = program.memory_analysis().generated_code_size_in_bytes
  memory = dataclasses.replace(made.memory, total=made.memory.total + code, code=code)
  try:
    return Made(memory, program.as_text())
  except jax.errors.JaxRuntimeError:  # jaxlib cannot read what libtpu 0.0.52 makes for SparseCores
    return Made(memory, made.text)


def _sizes(written: pathlib.Path) -> list[int]:
  """Of the schedule and the report of memory, once both have a beginning and an end."""
  schedules, reports = (list(written.glob(f"*{name}")) for name in (_SCHEDULE, _MEMORY))
  if not schedules or not reports:
    return []
  text = schedules[0].read_text()
  whole = "\nENTRY " in text and text.rstrip().endswith("}")
  return [len(text), reports[0].stat().st_size] if whole else []


def _memory(report: str) -> Memory:
  """Sums of the compiler's allocations; HBM has no color, and those of a thread are no memory."""
  totals: collections.Counter = collections.Counter()
  found = re.findall(r"^allocation \d+: size (\d+),(?: color (\d+),)? page \d+, (.*)", report, re.M)
  for size, color, kind in found:
    if not kind.startswith("thread-local"):
      totals[color] += int(size)
  return Memory(totals[""], 0, totals["5"])


def refusal(error: Exception) -> Made:
  """No program, for it needs more memory than there is, as the error says; raises other errors."""
  message = str(error)
  if "HbmOom" not in message and "RESOURCE_EXHAUSTED" not in message:
    raise error
  found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of|temporaries \(([\d.]+)([KMGT])\)", message)
  needed, of = None, "all"
  if found:
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    needed, of = int(float(number) * _UNITS[unit]), "all" if found[1] else "temporaries"
  return Made(None, "", message.splitlines()[0], needed, of)


def compiler_is_there() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def costliest(read: Schedule, seconds: Callable[[Operation], float], count: int) -> list[dict]:
  """Traced operations with the most estimated seconds, loops counted."""
  totals: collections.Counter = collections.Counter()

  def visit(name: str, times: float):
    for op in read.computations[name]:
      if op.body:
        visit(op.body, times * op.times())
      elif not op.kernel and op.opcode not in COLLECTIVES:
        totals[_title(op)] += times * seconds(op)

  visit(read.entry, 1)
  return [{"operation": k, "seconds": v} for k, v in totals.most_common(count)]


def _title(op: Operation) -> str:
  shapes = " ".join(f"{list(array.dims)}" for array in op.arrays[:3])
  source = re.sub(r"^jit\(\w+\)/", "", op.source)
  return f"{op.opcode} {source} {shapes}"
