"""Work in another process: its answer, its errors, its death."""

import os
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
