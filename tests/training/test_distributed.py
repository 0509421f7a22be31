"""Start-up from names of the environment, SIGTERM in a process alone, and profile windows."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

from lpm_jax.training import distributed, hooks, loop
from tests.training.job import losses_of
from tests.training.toy import ToyTask, toy_config

TRACED = """
import sys
from lpm_jax.training import loop
from tests.training.toy import toy_config

loop.train(toy_config(profile=dict(start=2, steps=2, every=0), steps=6), sys.argv[1])
"""


def test_values_come_from_the_config_before_the_environment(monkeypatch: pytest.MonkeyPatch):
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAX_PROCESS_ID", "3")
  distributed.start()
  distributed.start(dict(coordinator="b:2", processes=2, process=0))
  assert calls == [("a:1", 4, 3), ("b:2", 2, 0)]


def test_a_coordinator_alone_is_refused(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
  monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
  with pytest.raises(ValueError, match="distributed.processes: .*JAX_NUM_PROCESSES"):
    distributed.start(dict(coordinator="a:1"))
  with pytest.raises(ValueError, match="distributed.process: .*JAX_PROCESS_ID"):
    distributed.start(dict(coordinator="a:1", processes=2))
  with pytest.raises(ValueError, match="distributed.process: found 2, expected 0 to 1"):
    distributed.start(dict(coordinator="a:1", processes=2, process=2))


def test_where_no_cluster_is_found_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
  asked = []

  def initialize(**given: object):
    asked.append(given)
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(type(jax.config), "jax_platforms", None, raising=False)
  distributed.start()
  assert len(asked) == 1 and not jax.distributed.is_initialized()


class Terminated(ToyTask):
  """Gets SIGTERM while the batch of step 7 is read."""

  def dataset(self, seed: int):
    def read(example: dict) -> dict:
      if example.pop("at") == 7 * self.config.batch_size:
        os.kill(os.getpid(), signal.SIGTERM)
      return example

    examples = super().dataset(seed)
    return examples.map_with_index(lambda i, example: {**example, "at": i}).map(read)


def test_sigterm_saves_exits_with_the_code_for_retry_and_the_run_goes_on(tmp_path: pathlib.Path):
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as ended:
    loop.train(
      toy_config(task="tests.training.test_distributed.Terminated", evaluation__log_every=1),
      str(tmp_path),
    )
  assert ended.value.code == distributed.RETRY == 75
  assert signal.getsignal(signal.SIGTERM) is before
  last = max(losses_of(tmp_path))
  assert last < 30 and (tmp_path / "checkpoints" / str(last)).exists()
  assert not (tmp_path / "weights").exists()
  assert int(loop.train(toy_config(), str(tmp_path)).step) == 30


def test_profile_windows_open_and_close_as_configured(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  open_now, steps = [], []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: open_now.append(folder))
  monkeypatch.setattr(jax.profiler, "stop_trace", open_now.pop)
  window = hooks.ProfileWindow(tmp_path, dict(start=3, steps=2, every=5))
  for step in range(12):
    if window.changes(step):
      window.turn()
    steps += [step] if open_now else []
  assert steps == [3, 4, 8, 9]
  once = hooks.ProfileWindow(tmp_path, dict(start=1, steps=1, every=0))
  assert [once.changes(step) for step in range(3)] == [False, True, False]
  assert not hooks.ProfileWindow(tmp_path, None).changes(10)


def test_a_window_writes_a_trace(tmp_path: pathlib.Path):
  """In a process of its own, as runs are: the profiler watches every thread of its process."""
  done = subprocess.run([sys.executable, "-c", TRACED, tmp_path], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
