"""Work in a process of its own, which ends with it whatever still runs there."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any


def isolated(work: Callable[..., Any], *given: Any) -> Any:
  """`work(*given)`, done in a new process; what is given and what comes back is pickled.

  Raises what `work` raises, and RuntimeError when the process ends without a word.
  """
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe()
  process = context.Process(target=_answer, args=(there, work, given), daemon=True)
  process.start()
  there.close()
  try:
    done, result = here.recv()
  except EOFError:
    process.join()
    raise RuntimeError(f"the process of {work.__name__} ended with {process.exitcode}") from None
  finally:
    process.kill()
    process.join()
  if not done:
    raise result
  return result


def _answer(connection: Connection, work: Callable, given: tuple):
  threading.Thread(target=_end_with_parent, daemon=True).start()
  try:
    answer = True, work(*given)
  except Exception as error:
    answer = False, error
  connection.send(answer)


def _end_with_parent():
  """A parent that is killed cannot end its children."""
  wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
