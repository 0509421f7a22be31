"""Goodput: the share of the wall time since a run first began that went into steps it kept."""

import datetime
import importlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

# What the time of an attempt goes into. "data" counts where the devices had nothing left to do.
PHASES = ("start", "compile", "step", "data", "checkpoint", "sample", "profile", "export")


def summary(attempts: Sequence[Mapping]) -> dict[str, float]:
  """Seconds by cause over all attempts of a run, `wall`, and `goodput` = step / wall.

  Two causes show only between attempts. `lost`: steps that the next one did again, at the mean time
  of a step. `down`: between the last record of one and the begin of the next; steps after the last
  record are in there too.

  Args:
    attempts: in order; each with begin, end (Unix time), first_step, last_step, seconds by phase.
  """
  total = {name: 0.0 for name in (*PHASES, "stalled", "lost", "down")}
  for attempt, after in zip(attempts, [*attempts[1:], None], strict=True):
    for name, seconds in attempt["seconds"].items():
      total[name] += seconds
    if after:
      steps = attempt["last_step"] - attempt["first_step"]
      again = max(attempt["last_step"] - after["first_step"], 0)
      lost = attempt["seconds"].get("step", 0.0) * min(again / max(steps, 1), 1.0)
      total["step"] -= lost
      total["lost"] += lost
      total["down"] += max(after["begin"] - attempt["end"], 0.0)
  wall = attempts[-1]["end"] - attempts[0]["begin"] if attempts else 0.0
  return total | {"wall": wall, "goodput": total["step"] / wall if wall else 0.0}


def table(found: Mapping[str, float]) -> str:
  """The summary as lines of text, the largest cause first."""
  causes = {n: s for n, s in found.items() if n not in ("wall", "goodput") and s >= 0.05}
  rows = sorted(causes.items(), key=lambda item: -item[1])
  lines = [f"  {name:<12}{s:10.1f} s {100 * s / found['wall']:5.1f} %" for name, s in rows]
  return "\n".join([f"goodput {100 * found['goodput']:.1f} % of {found['wall']:.1f} s", *lines])


class Goodput:
  """Times the phases of this attempt and keeps them in workdir/goodput, a small file an attempt.

  (Files of their own, because objects in buckets cannot be appended to.) Process 0 writes.

  Args:
    workdir: of the run.
    begun: Unix time at which the attempt began; None is now.
    job: name under which `ml_goodput_measurement` exports to Cloud Logging; "": not exported.
  """

  def __init__(self, workdir: str | os.PathLike, *, begun: float | None = None, job: str = ""):
    self._begin = time.time() if begun is None else begun
    self._folder = epath.Path(workdir) / "goodput"
    self._first = jax.process_index() == 0
    self._before = self._read() if self._first else []
    self._seconds = {name: 0.0 for name in PHASES}
    self._phase, self._since = "start", time.monotonic() - (time.time() - self._begin)
    self._first_step = self._last_step = 0
    self._again = 0.0
    self._cloud = CloudExport(job) if job and self._first else None

  def _read(self) -> list[dict]:
    paths = sorted(self._folder.glob("*.json")) if self._folder.exists() else []
    return [json.loads(path.read_text()) for path in paths]

  def enter(self, phase: str, step: int):
    """Charges the time since the last call to the phase that ends, and begins `phase`."""
    now = time.monotonic()
    self._seconds[self._phase] += now - self._since
    if self._cloud:
      self._cloud.enter(self._phase, phase, step)
    self._phase, self._since = phase, now

  def overlapped(self):
    """The phase that goes on was hidden behind a step that still runs: it counts as step."""
    now = time.monotonic()
    self._seconds["step"] += now - self._since
    self._since = now

  def resumed(self, step: int):
    """The attempt begins with `step`, or comes back to it: steps done again are lost."""
    done = self._last_step - self._first_step
    again = max(self._last_step - step, 0) if done else 0
    if again:
      lost = self._seconds["step"] * again / done
      self._seconds["step"] -= lost
      self._again += lost
    else:
      self._first_step = step
    self._last_step = step

  def finished(self, step: int):
    """`step` steps of the run are done."""
    self._last_step = step

  def read(self) -> dict[str, float]:
    """The summary of the run so far (process 0; {} in others)."""
    return summary([*self._before, self._attempt()]) if self._first else {}

  def _attempt(self, stalled: tuple[str, float] | None = None) -> dict[str, Any]:
    seconds = dict(self._seconds)
    seconds[self._phase] += time.monotonic() - self._since
    if stalled:
      phase, waited = stalled
      seconds[phase] = max(seconds[phase] - waited, 0.0)
      seconds["stalled"] = waited
    if self._again:
      seconds["lost"] = self._again
    return {
      "begin": self._begin,
      "end": time.time(),
      "first_step": self._first_step,
      "last_step": self._last_step,
      "seconds": seconds,
    }

  def write(self, stalled: tuple[str, float] | None = None):
    """Brings the attempt's file up to date; `stalled`: a phase and how long it hung."""
    if not self._first:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder / f"{int(1000 * self._begin):013d}.json"
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(self._attempt(stalled), indent=1))
    fresh.replace(path)

  def close(self) -> str:
    """Writes a last time; returns the table of the run ("" but in process 0)."""
    self.write()
    if self._cloud:
      self._cloud.close()
    return table(self.read()) if self._first else ""


class CloudExport:
  """Phases as calls of Google's recorder, where `ml_goodput_measurement` is installed."""

  def __init__(self, job: str):
    try:
      package = importlib.import_module("ml_goodput_measurement.src.goodput")
      self._to = package.GoodputRecorder(job, f"goodput_{job}", logging_enabled=True)
    except Exception as error:  # not installed, or no credentials: training goes on without
      logging.warning("goodput is not exported: %s", error)
      self._to = None
      return
    self._to.record_job_start_time()
    self._to.record_training_preparation_start_time()

  def enter(self, old: str, new: str, step: int):
    """Ends one phase and begins another."""
    if not self._to or old == new:
      return
    if old == "start":
      self._to.record_training_preparation_end_time()
    elif old == "data":
      self._to.record_data_loading_end_time()
    elif old in ("checkpoint", "sample", "profile", "export"):
      self._to.record_custom_badput_event_end_time(custom_badput_event_type=old)
    if new == "step":
      self._to.record_step_start_time(step)
    elif new == "data":
      self._to.record_data_loading_start_time()
    elif new in ("checkpoint", "sample", "profile", "export"):
      self._to.record_custom_badput_event_start_time(custom_badput_event_type=new)

  def close(self):
    """The job ends."""
    if self._to:
      self._to.record_job_end_time(datetime.datetime.now(datetime.UTC))
      self._to.flush()
