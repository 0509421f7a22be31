"""Names the process that hangs or has gone, and ends the run; by hand nobody finds it among 64."""

import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping

import jax
from absl import logging
from etils import epath

from lpm_jax.training.distributed import RETRY, Store, store

_BEATS = "lpm/beats/"
_VERDICT = "lpm/verdict/"
STEPPING = ("step", "data")  # phases that end within the time limit; others get LONG times as much
LONG = 4
_DEAF_SECONDS = 80  # an interpreter that runs no thread for so long is ended from outside of it


@dataclasses.dataclass(frozen=True)
class Beat:
  """What a process says of itself every few seconds.

  Args:
    count: of beats; a process whose count stands still does not run.
    moves: changes of phase since its start: the same sequence in every process, so the least is
      behind.
    phase, step: where it is. seconds: for how long.
    name: "process 3 (host, pid 17)".
  """

  count: int
  moves: int
  phase: str
  step: int
  seconds: float
  name: str

  def __str__(self) -> str:
    return f"{self.name}: in {self.phase!r} at step {self.step} for {self.seconds:.0f} s"


def stalled_message(beats: Mapping[int, Beat], expected: int) -> str:
  """Says which processes are behind when nothing moves.

  Args:
    beats: the newest of each process, by index.
    expected: how many processes there are.
  """
  missing = [f"process {i}" for i in range(expected) if i not in beats]
  if missing:
    return f"no step finishes; never heard of: {', '.join(missing)}"
  least = min(beat.moves for beat in beats.values())
  behind = [str(beats[i]) for i in sorted(beats) if beats[i].moves == least]
  if expected == 1:
    return f"no step finishes; {behind[0]}"
  if len(behind) == expected:
    return f"no step finishes; no process is behind (a device or the network?): {behind[0]}, as all"
  ahead = next(beat for beat in beats.values() if beat.moves > least)
  return f"no step finishes; behind: {'; '.join(behind)}; others wait in {ahead.phase!r}"


class Watchdog:
  """Watches the phases of the loop; use as a context and call `enter` at every change of phase.

  Every process puts a beat into JAX's coordination service and reads those of the others. The run
  ends, in all processes and with the same message, when a phase lasts too long in one, when a
  process is silent for `lost_seconds`, or when a process fails. Each writes the stacks of its own
  threads to workdir/stalls and exits with code RETRY.

  Args:
    workdir: of the run.
    stall_seconds: longest step, or wait for data; other phases may last LONG times as long.
    lost_seconds: silence after which a process counts as gone.
    beat_seconds: between beats.
    at_end: called with the phase and its seconds before the process exits (accounting).
    channel, leave: for tests: the store (None: JAX's) and what ends the process.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    stall_seconds: float = 900.0,
    lost_seconds: float = 40.0,
    beat_seconds: float = 2.0,
    at_end: Callable[[str, float], None] | None = None,
    channel: Store | None = None,
    leave: Callable[[int], None] = os._exit,
  ):
    self.index, self.processes = jax.process_index(), jax.process_count()
    self.name = f"process {self.index} ({socket.gethostname()}, pid {os.getpid()})"
    self._folder = epath.Path(workdir) / "stalls"
    self._stall, self._lost, self._pause = stall_seconds, lost_seconds, beat_seconds
    self._at_end, self._leave = at_end, leave
    self._store = channel or store()
    self._place = ("start", 0, time.monotonic())
    self._moves = self._count = 0
    self._beats: dict[int, Beat] = {}
    self._changed: dict[int, float] = {}  # when each count was last seen to change, on our clock
    self._answered = time.monotonic()
    self._over = threading.Event()
    self._ending = threading.Lock()

  def __enter__(self) -> "Watchdog":
    # Two threads: one may be stuck in a call to the coordinator, the other then notices.
    if self._store:
      self._name_the_coordinator()
    for body in (self._exchange, self._watch) if self._store else (self._watch,):
      threading.Thread(target=body, name=f"watchdog{body.__name__}", daemon=True).start()
    return self

  def __exit__(self, *_: object):
    self._over.set()
    if self._store:
      faulthandler.cancel_dump_traceback_later()
      ctypes.CDLL(None).signal(signal.SIGABRT, None)  # the default

  def _name_the_coordinator(self):
    """When process 0 dies, JAX's client aborts the others at once: says why, and exits with RETRY.

    The handler is set in C, for Python's run in the main thread only, which waits for a device.
    """

    def aborted(number: int):
      del number
      first = self._beats[0].name if 0 in self._beats else "process 0"
      message = self._gone() or f"gone, or its host: {first}, the coordinator"
      os.write(2, f"{self.name}: {message}\n".encode())
      self._leave(RETRY)

    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)  # kept, for C does not
    ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

  def enter(self, phase: str, step: int):
    """The loop goes over to another phase."""
    self._place = (phase, step, time.monotonic())
    self._moves += 1

  def fail(self, error: BaseException):
    """This process cannot go on: the others end with its name. Returns in a process alone."""
    if not self._store:
      return
    self._over.set()
    # A collective breaks in those that are left; memory runs out in the one that says so.
    lost = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    deadline = time.monotonic() + 2 * self._lost
    while lost and not self._verdict() and time.monotonic() < deadline:  # is it another's death?
      if message := self._gone():
        self._condemn(message)
      self._try_exchange()
      time.sleep(self._pause)
    self._condemn(f"{self.name} failed: {type(error).__name__}: {str(error)[:500]}")
    traceback.print_exception(error)
    self._end(self._verdict() or str(error), RETRY if lost else 1)

  def _exchange(self):
    while not self._over.wait(self._pause):
      faulthandler.dump_traceback_later(_DEAF_SECONDS + 2 * self._lost, exit=True)
      self._try_exchange()

  def _try_exchange(self):
    phase, step, since = self._place
    self._count += 1
    now = time.monotonic()
    beat = Beat(self._count, self._moves, phase, step, now - since, self.name)
    try:
      text = json.dumps(dataclasses.asdict(beat))
      self._store.key_value_set(f"{_BEATS}{self.index}", text, allow_overwrite=True)
      found = self._store.key_value_dir_get(_BEATS)
    except Exception as error:  # of JAX's runtime, whose classes differ between versions
      logging.warning("watchdog: the coordinator does not answer: %s", error)
      return
    now = self._answered = time.monotonic()
    for key, text in found:
      index, new = int(key.rpartition("/")[2]), Beat(**json.loads(text))
      if index not in self._beats or self._beats[index].count != new.count:
        self._changed[index] = now
      self._beats[index] = new

  def _watch(self):
    while not self._over.wait(self._pause / 2):
      phase, step, since = self._place
      seconds = time.monotonic() - since
      message = self._verdict() or self._gone()
      if not message and seconds > self._stall * (1 if phase in STEPPING else LONG):
        own = Beat(self._count, self._moves, phase, step, seconds, self.name)
        message = stalled_message(self._beats | {self.index: own}, self.processes)
      if message:
        self._over.set()
        self._condemn(message)
        self._end(self._verdict() or message, RETRY)

  def _gone(self) -> str:
    """Names a process that is silent; "" when there is none."""
    now = time.monotonic()
    if not self._store:
      return ""
    if now - self._answered > self._lost:
      first = self._beats[0].name if 0 in self._beats else "process 0"
      return f"{first}, the coordinator, has not answered for {now - self._answered:.0f} s"
    gone = [i for i, changed in self._changed.items() if now - changed > self._lost]
    names = "; ".join(f"{self._beats[i]}" for i in sorted(gone) if i != self.index)
    return f"gone, or its host: {names}; silent for more than {self._lost:.0f} s" if names else ""

  def _condemn(self, message: str):
    """Tells all processes; the first message stands."""
    if self._store and not self._verdict():
      try:
        self._store.key_value_set(f"{_VERDICT}{self.index}", message, allow_overwrite=True)
      except Exception as error:
        logging.warning("watchdog: %s (the others were not told: %s)", message, error)

  def _verdict(self) -> str:
    try:
      found = self._store.key_value_dir_get(_VERDICT) if self._store else []
    except Exception:
      return ""
    return min(found)[1] if found else ""

  def _end(self, message: str, code: int):
    """Writes message and stacks, waits until the others know, and exits; the first call counts."""
    if not self._ending.acquire(blocking=False):
      time.sleep(60)
    phase, _, since = self._place
    print(f"{self.name}: {message}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    stacks = _stacks()

    def to_disk():
      if self._at_end:
        self._at_end(phase, time.monotonic() - since)
      self._folder.mkdir(parents=True, exist_ok=True)
      (self._folder / f"process-{self.index}.txt").write_text(f"{self.name}: {message}\n\n{stacks}")

    writing = threading.Thread(target=to_disk, daemon=True)  # the disk may be what hangs
    writing.start()
    writing.join(timeout=10)
    if self._store and self.index == 0:
      time.sleep(2 * self._pause)  # the store ends with this process
    sys.stdout.flush()
    self._leave(code)


def _stacks() -> str:
  """Stacks of all Python threads of this process."""
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  return "\n".join(
    f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
    for ident, frame in sys._current_frames().items()
  )
