"""Runs of several processes on the loopback address, for tests; none outlives its test."""

import ctypes
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

from tests.children import ROOT, with_devices


def free_port() -> int:
  """A port that nobody listens on now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _die_with_parent():
  """In a new child: SIGKILL when the tests are killed (prctl's PR_SET_PDEATHSIG)."""
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Job:
  """Processes that train together; use as a context.

  Args:
    workdir: of the run; the output of process i goes to a file beside it.
    changes: of the config, passed to `module` as name=value.
    processes, devices: how many, and how many devices in each.
    module: what each process runs, with the workdir and the changes as arguments.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    changes: dict,
    *,
    processes: int = 4,
    devices: int = 2,
    module: str = "tests.training.child",
  ):
    self.workdir, self.host = workdir, socket.gethostname()
    words = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    env = with_devices(devices) | {"PYTHONUNBUFFERED": "1"}
    if processes > 1:
      address = f"127.0.0.1:{free_port()}"
      env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    self.outputs = [
      workdir.parent / f"{workdir.name}-{time.time_ns()}-{i}" for i in range(processes)
    ]
    self.children = []
    for i, path in enumerate(self.outputs):
      with path.open("w") as output:
        self.children.append(
          subprocess.Popen(
            [sys.executable, "-m", module, workdir, *words],
            cwd=ROOT,
            env=env | {"JAX_PROCESS_ID": str(i)},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
          )
        )

  def __enter__(self) -> "Job":
    return self

  def __exit__(self, *_: object):
    for child in self.children:
      child.kill()
      child.wait()

  def output(self, index: int) -> str:
    """What process `index` has printed."""
    return self.outputs[index].read_text()

  def everything(self) -> str:
    """What all have printed, for messages of failed tests."""
    return "\n".join(f"--- process {i}\n{self.output(i)}" for i in range(len(self.children)))

  def wait_for_step(self, step: int, timeout: float = 240.0):
    """Until the run has logged `step`."""
    deadline = time.monotonic() + timeout
    while step not in losses_of(self.workdir):
      alive = [child.poll() is None for child in self.children]
      assert all(alive) and time.monotonic() < deadline, self.everything()
      time.sleep(0.02)

  def wait_for_checkpoint(self, step: int, timeout: float = 240.0):
    """Until the checkpoint of `step` is whole."""
    deadline = time.monotonic() + timeout
    while not (self.workdir / "checkpoints" / str(step)).exists():
      alive = [child.poll() is None for child in self.children]
      assert all(alive) and time.monotonic() < deadline, self.everything()
      time.sleep(0.02)

  def send(self, index: int, number: signal.Signals):
    """Sends a signal to one process."""
    self.children[index].send_signal(number)

  def codes(self, timeout: float = 240.0) -> list[int]:
    """Exit codes once all have ended."""
    deadline = time.monotonic() + timeout
    for child in self.children:
      try:
        child.wait(max(deadline - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        raise AssertionError(f"still running after {timeout} s\n{self.everything()}") from None
    return [child.returncode for child in self.children]


def losses_of(workdir: pathlib.Path) -> dict[int, float]:
  """Loss by step; a step that was done again counts once, as it was the last time."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  rows = [json.loads(line) for line in lines if line.endswith("}")]
  return {row["step"]: row["loss"] for row in rows if "loss" in row}
