"""Runs of several processes: equal to one, and what happens when one of them ends or hangs."""

import pathlib
import signal
import time

import numpy as np
import pytest

from lpm_jax.training import loop
from lpm_jax.training.distributed import RETRY
from tests.training.child import saved
from tests.training.job import Job, losses_of
from tests.training.toy import toy_config

STEPS = 30
SHARDED = {"sharding__mesh": {"data": 2, "fsdp": -1}, "sharding__rules": {"mlp": "fsdp"}}
TOY = {"steps": STEPS, "evaluation__log_every": 1, "watchdog": {"lost_seconds": 30.0}} | SHARDED
PACE = {"pace": 0.3, "evaluation__sample_every": 1}  # 0.3 s a step: time to send a signal in


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run of four processes with two devices each that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  with Job(workdir, TOY) as job:
    assert job.codes() == [0] * 4, job.everything()
  return workdir


def test_four_processes_have_the_losses_of_one(whole: pathlib.Path, tmp_path: pathlib.Path):
  loop.train(toy_config(steps=STEPS, evaluation__log_every=1), str(tmp_path))
  one, four = losses_of(tmp_path), losses_of(whole)
  assert list(four) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(list(four.values()), list(one.values()), rtol=2e-5)


def test_a_killed_process_ends_the_others_with_its_name_and_the_restart_is_bit_equal(
  whole: pathlib.Path, tmp_path: pathlib.Path
):
  workdir = tmp_path / "run"
  with Job(workdir, TOY | PACE) as job:
    job.wait_for_checkpoint(10)
    job.send(2, signal.SIGKILL)
    killed = time.monotonic()
    codes = job.codes(timeout=60)
    assert time.monotonic() - killed < 60
    assert codes == [RETRY, RETRY, -signal.SIGKILL, RETRY], job.everything()
    name = f"process 2 ({job.host}, pid {job.children[2].pid})"
    for index in (0, 1, 3):
      assert f"gone, or its host: {name}" in job.output(index), job.everything()
      assert "thread MainThread" in (workdir / "stalls" / f"process-{index}.txt").read_text()
  assert not (workdir / "checkpoints" / str(STEPS)).exists()
  with Job(workdir, TOY) as job:
    assert job.codes() == [0] * 4, job.everything()
  arrays, expected = (saved(toy_config(steps=STEPS), str(path)) for path in (workdir, whole))
  assert ".params['up'].value" in expected
  for key in expected:
    np.testing.assert_array_equal(arrays[key], expected[key], err_msg=key)


def test_sigterm_saves_and_two_then_one_process_continue(
  whole: pathlib.Path, tmp_path: pathlib.Path
):
  workdir = tmp_path / "run"
  for processes in (4, 2):
    begun = len(losses_of(workdir))
    with Job(workdir, TOY | PACE, processes=processes) as job:
      job.wait_for_step(begun + 5)
      job.send(processes - 1, signal.SIGTERM)
      assert job.codes() == [RETRY] * processes, job.everything()
    last = max(losses_of(workdir))
    assert last < STEPS and (workdir / "checkpoints" / str(last)).exists()
  with Job(workdir, TOY, processes=1) as job:
    assert job.codes() == [0], job.everything()
  again, expected = losses_of(workdir), losses_of(whole)
  assert list(again) == list(expected)
  np.testing.assert_allclose(list(again.values()), list(expected.values()), rtol=2e-5)
  # The loader goes on from the state that another number of processes has left.
  batches = [saved(toy_config(steps=STEPS), str(path)) for path in (workdir, whole)]
  np.testing.assert_array_equal(*(arrays["next batch x"] for arrays in batches))


def test_a_process_whose_data_hangs_is_named(tmp_path: pathlib.Path):
  changes = TOY | {"hang": 1, "watchdog": {"stall_seconds": 15.0, "lost_seconds": 60.0}}
  with Job(tmp_path / "run", changes, processes=2) as job:
    assert job.codes() == [RETRY] * 2, job.everything()
    for index in range(2):
      behind = f"behind: process 1 ({job.host}, pid {job.children[1].pid}): in 'data'"
      assert behind in job.output(index), job.everything()
    assert "next(self.batches)" in (tmp_path / "run" / "stalls" / "process-1.txt").read_text()
