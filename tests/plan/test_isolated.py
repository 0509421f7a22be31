"""Work in another process: its answer, its errors, its death."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from lpm_jax.plan.isolated import isolated


def add(one: int, other: int) -> int:
  threading.Thread(target=time.sleep, args=(600,)).start()  # goes on; the answer comes all the same
  return one + other


def refuse():
  raise ValueError("no")


def die():
  os._exit(3)


def test_answers_errors_and_deaths_come_back():
  assert isolated(add, 1, 2) == 3
  with pytest.raises(ValueError, match="^no$"):
    isolated(refuse)
  with pytest.raises(RuntimeError, match="process of die ended with 3"):
    isolated(die)


def name_oneself(path: str):
  pathlib.Path(path).write_text(str(os.getpid()))
  time.sleep(600)


def test_a_process_ends_with_the_one_that_asked(tmp_path):
  code = (
    f"from tests.plan.test_isolated import *; isolated(name_oneself, {str(tmp_path / 'pid')!r})"
  )
  asked = subprocess.Popen([sys.executable, "-c", code])
  while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
    assert asked.poll() is None
    time.sleep(0.1)
  asked.kill()
  asked.wait()
  process, until = int((tmp_path / "pid").read_text()), time.monotonic() + 30
  while pathlib.Path(f"/proc/{process}").exists() and time.monotonic() < until:
    time.sleep(0.1)
  assert not pathlib.Path(f"/proc/{process}").exists()
