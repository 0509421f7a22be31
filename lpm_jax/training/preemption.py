"""SIGTERM as a notice: the step under way ends, and all processes save after the same one."""

import os
import signal
import threading
from types import FrameType

import jax
from absl import logging
from jax.experimental.multihost_utils import reached_preemption_sync_point

from lpm_jax.training.distributed import store

_STOP = "lpm/stop/"


class PreemptionNotice:
  """Use as a context; a process that gets SIGTERM in it does not end by it.

  Where JAX's processes are joined, its preemption service takes the signal and finds the step that
  none of them has passed. A process alone notes it here.
  """

  def __init__(self):
    self._noticed = self._stops = False
    self._before = None

  def __enter__(self) -> "PreemptionNotice":
    alone = not jax.distributed.is_initialized()
    if alone and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_: object):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, number: int, frame: FrameType | None):
    del number, frame
    self._noticed = True

  def stop(self):
    """Ends the run of its own accord, as SIGTERM would; process 0 decides for all."""
    if not jax.distributed.is_initialized():
      self._noticed = self._stops = True
    elif jax.process_index() == 0 and not self._stops:
      self._stops = True
      if store():
        store().key_value_set(f"{_STOP}0", "max_minutes", allow_overwrite=True)
      os.kill(os.getpid(), signal.SIGTERM)

  def is_stop(self) -> bool:
    """Once `reached`: whether `stop` was the cause."""
    return self._stops or bool(store() and store().key_value_dir_get(_STOP))

  def reached(self, step: int) -> bool:
    """Whether the run ends after `step`, the same for all processes; ask after every step."""
    if jax.distributed.is_initialized():
      reached = reached_preemption_sync_point(step)
    else:
      reached = self._noticed
    if reached and not self._stops:
      logging.warning("SIGTERM: saving after step %d", step)
    return reached
