"""The watchdog against a store in memory: whom it names, and when it stays quiet."""

import dataclasses
import pathlib
import threading
import time

import pytest

from lpm_jax.training.distributed import RETRY
from lpm_jax.training.watchdog import Beat, Watchdog, stalled_message

QUICK = dict(stall_seconds=0.4, lost_seconds=1.0, beat_seconds=0.05)


class Memory:
  """A store as JAX's, in this process."""

  def __init__(self):
    self.texts, self.answers = {}, True

  def key_value_set(self, key: str, value: str, allow_overwrite: bool = False):
    if not self.answers:
      raise RuntimeError("UNAVAILABLE")
    self.texts[key] = value

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
    if not self.answers:
      raise RuntimeError("UNAVAILABLE")
    return [item for item in list(self.texts.items()) if item[0].startswith(key)]


class Watched:
  """A watchdog that notes how it would have left."""

  def __init__(self, workdir: pathlib.Path, channel: Memory | None = None, index=0, processes=1):
    self.codes, self.left = [], threading.Event()
    self.dog = Watchdog(workdir, channel=channel, leave=self._leave, **QUICK)
    self.dog.index, self.dog.processes = index, processes
    self.dog.name = f"process {index} (host-{index}, pid 1)"

  def _leave(self, code: int):
    self.codes.append(code)
    self.left.set()


def beat(**changes: object) -> Beat:
  return dataclasses.replace(Beat(5, 10, "step", 7, 3.0, "process 0 (a, pid 1)"), **changes)


def test_the_process_with_the_fewest_moves_is_behind():
  behind = beat(moves=9, phase="data", step=6, name="process 2 (c, pid 3)")
  message = stalled_message({0: beat(), 1: beat(name="process 1 (b, pid 2)"), 2: behind}, 3)
  assert "behind: process 2 (c, pid 3): in 'data' at step 6" in message
  assert "process 1" not in message


def test_nobody_is_blamed_when_all_wait_alike():
  message = stalled_message({0: beat(), 1: beat(name="process 1 (b, pid 2)")}, 2)
  assert "no process is behind" in message


def test_a_process_that_was_never_heard_of_is_named():
  assert "never heard of: process 1" in stalled_message({0: beat()}, 2)


def test_one_process_ends_when_a_step_takes_too_long(
  tmp_path: pathlib.Path, capfd: pytest.CaptureFixture
):
  watched = Watched(tmp_path)
  with watched.dog:
    watched.dog.enter("step", 3)
    assert watched.left.wait(20)
  assert watched.codes == [RETRY]
  assert "in 'step' at step 3" in capfd.readouterr().err
  assert "thread MainThread" in (tmp_path / "stalls" / "process-0.txt").read_text()


def test_one_process_is_left_alone_while_phases_change(tmp_path: pathlib.Path):
  watched = Watched(tmp_path)
  with watched.dog:
    begin, step = time.monotonic(), 0
    while time.monotonic() < begin + 2 * QUICK["lost_seconds"]:
      watched.dog.enter("step", step := step + 1)
      time.sleep(0.02)
  assert not watched.codes


def test_all_end_with_the_name_of_a_process_that_fell_silent(
  tmp_path: pathlib.Path, capfd: pytest.CaptureFixture
):
  store = Memory()
  dogs = [Watched(tmp_path, store, index, 3) for index in range(3)]
  with dogs[0].dog, dogs[1].dog:
    with dogs[2].dog:
      time.sleep(0.3)  # some beats, then none
    for _ in range(1000):
      for watched in dogs[:2]:
        watched.dog.enter("step", 0)
      if all(watched.left.is_set() for watched in dogs[:2]):
        break
      time.sleep(0.02)
  assert [watched.codes for watched in dogs] == [[RETRY], [RETRY], []]
  assert capfd.readouterr().err.count("gone, or its host: process 2 (host-2") == 2


def test_a_coordinator_that_does_not_answer_is_named(
  tmp_path: pathlib.Path, capfd: pytest.CaptureFixture
):
  store = Memory()
  watched = Watched(tmp_path, store, 1, 2)
  store.answers = False
  with watched.dog:
    for _ in range(1000):
      watched.dog.enter("step", 0)
      if watched.left.wait(0.02):
        break
  assert watched.codes == [RETRY]
  assert "process 0, the coordinator, has not answered" in capfd.readouterr().err


def test_a_failing_process_tells_the_others_why(
  tmp_path: pathlib.Path, capfd: pytest.CaptureFixture
):
  store = Memory()
  failing, other = (Watched(tmp_path, store, index, 2) for index in (1, 0))
  with other.dog, failing.dog:
    failing.dog.fail(ValueError("file x is damaged"))
    assert other.left.wait(20)
  assert failing.codes == [1] and other.codes == [RETRY]
  text = "process 1 (host-1, pid 1) failed: ValueError: file x is damaged"
  assert capfd.readouterr().err.count(f": {text}") == 2
