"""Goodput: where the time of a run went, over its restarts."""

import inspect
import json
import pathlib
import sys
import time
import types

import pytest

from lpm_jax.training import goodput, loop
from lpm_jax.training.goodput import CloudExport, Goodput, summary, table
from tests.training.toy import toy_config


def attempt(begin: float, end: float, first: int, last: int, **seconds: float) -> dict:
  return dict(begin=begin, end=end, first_step=first, last_step=last, seconds=seconds)


def test_steps_done_again_are_lost_and_gaps_are_down():
  first = attempt(100.0, 200.0, 0, 50, start=20.0, step=75.0, data=5.0)
  second = attempt(230.0, 260.0, 40, 60, start=10.0, step=20.0)
  found = summary([first, second])
  assert found["lost"] == pytest.approx(75.0 * 10 / 50)
  assert found["step"] == pytest.approx(75.0 - 15.0 + 20.0)
  assert (found["down"], found["start"], found["data"]) == (30.0, 30.0, 5.0)
  assert found["wall"] == 160.0 and found["goodput"] == pytest.approx(80.0 / 160.0)
  causes = sum(s for name, s in found.items() if name not in ("wall", "goodput"))
  assert causes == pytest.approx(found["wall"])
  assert table(found).splitlines()[0] == "goodput 50.0 % of 160.0 s"


def test_every_second_of_an_attempt_has_one_cause(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  now = [1000.0]
  clock = types.SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0])
  monkeypatch.setattr(goodput, "time", clock)
  counted = Goodput(tmp_path)
  now[0] += 3  # start
  for phase, seconds in (("compile", 5), ("step", 10), ("data", 2), ("step", 8), ("data", 4)):
    counted.enter(phase, 0)
    now[0] += seconds
  counted.overlapped()  # the last wait was hidden behind a step
  counted.enter("checkpoint", 0)
  now[0] += 1
  counted.write(("checkpoint", 0.5))
  (path,) = (tmp_path / "goodput").iterdir()
  seconds = {n: s for n, s in json.loads(path.read_text())["seconds"].items() if s}
  assert seconds == dict(start=3, compile=5, step=22, data=2, checkpoint=0.5, stalled=0.5)


def test_a_run_reports_over_its_restarts(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
  loop.train(toy_config(max_minutes=1e-9), str(tmp_path))
  time.sleep(0.1)  # "down": the table leaves out what is below 0.05 s
  loop.train(toy_config(), str(tmp_path))
  assert len(list((tmp_path / "goodput").iterdir())) == 2
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert 0 < rows[-1]["goodput"] < 1
  text = capsys.readouterr().out
  assert text.count("goodput ") == 2 and "down" in text and "compile" in text


def test_export_calls_the_cloud_recorder(monkeypatch: pytest.MonkeyPatch):
  calls = []

  class GoodputRecorder:
    """The methods of ml_goodput_measurement 0.2.3 that are called, with their arguments."""

    def __init__(self, job_name: str, logger_name: str, logging_enabled: bool = False):
      calls.append(("init", job_name, logging_enabled))

    def __getattr__(self, name: str):
      return lambda *args, **kwargs: calls.append((name, *args, *kwargs.values()))

  package = types.ModuleType("ml_goodput_measurement.src.goodput")
  package.GoodputRecorder = GoodputRecorder
  monkeypatch.setitem(sys.modules, "ml_goodput_measurement", types.ModuleType("x"))
  monkeypatch.setitem(sys.modules, "ml_goodput_measurement.src", types.ModuleType("x"))
  monkeypatch.setitem(sys.modules, "ml_goodput_measurement.src.goodput", package)
  export = CloudExport("job")
  for old, new, step in (("start", "step", 0), ("step", "data", 1), ("data", "sample", 1)):
    export.enter(old, new, step)
  export.close()
  assert calls[0] == ("init", "job", True)
  assert [call[0] for call in calls[1:]] == [
    "record_job_start_time",
    "record_training_preparation_start_time",
    "record_training_preparation_end_time",
    "record_step_start_time",
    "record_data_loading_start_time",
    "record_data_loading_end_time",
    "record_custom_badput_event_start_time",
    "record_job_end_time",
    "flush",
  ]


def test_the_recorder_has_the_methods_that_are_called():
  package = pytest.importorskip("ml_goodput_measurement.src.goodput")
  source = inspect.getsource(CloudExport)
  for name in {word.split("(")[0] for word in source.split("self._to.")[1:]}:
    assert callable(getattr(package.GoodputRecorder, name))


def test_without_the_package_training_goes_on():
  export = CloudExport("job")
  export.enter("start", "step", 0)
  export.close()
  assert export._to is None
