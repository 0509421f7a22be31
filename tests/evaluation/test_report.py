"""The report stands alone and is written whole or not at all."""

import os
import re

import pytest

from lpm_jax.evaluation import goals, page, report, run, scoring


@pytest.fixture(scope="module")
def takes(clips, perfect_take, still_take):
  return {
    "render": {"heldout": [perfect_take(clip) for clip in clips]},
    "model": {"heldout": [perfect_take(clip) for clip in clips]},
    "still": {"heldout": [still_take(clip) for clip in clips]},
  }


def results_of(takes: dict) -> dict:
  scores = scoring.json_safe({name: run.score(groups) for name, groups in takes.items()})
  return {"systems": scores, "goals": goals.judge(scores), "probe": {}}


def write(path, takes):
  report.write_report(
    path, results_of(takes), run.choose(takes, 2), title="T", subtitle="S", command="lpm evaluate"
  )


def test_report_is_one_file_that_needs_no_other(tmp_path, takes):
  write(tmp_path / "report.html", takes)
  html = (tmp_path / "report.html").read_text()
  assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
  assert all(uri.startswith("data:") for uri in re.findall(r'(?:src|href)="([^"]*)', html))
  assert html.count("<video") == 2 and "data:video/mp4" in html and "data:image/png" in html
  assert "lip correlation" in html and len(html) < 3_000_000


def test_failed_report_leaves_the_old_one(tmp_path, takes, monkeypatch):
  path = tmp_path / "report.html"
  path.write_text("old")

  def full(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(OSError, match="disk full"):
    page.write_whole(path, "new")
  assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_chosen_clips_take_each_kind_in_turn(takes):
  chosen = run.choose(takes, 4)
  assert len({run.kind_of(group["render"]) for group in chosen}) == 4
  assert all(set(group) == {"render", "model", "still"} for group in chosen)
