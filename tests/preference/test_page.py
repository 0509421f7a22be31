"""The page: whole in one file, and what it saves is what the judge reads."""

import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.puppets import preference_pairs
from data_pipelines.records import write_records
from lpm_jax.evaluation import page as pages
from lpm_jax.preference import judge, page, pairs
from lpm_jax.preference.judge import Judgement
from tests.preference.test_pairs import candidates_of

SCRIPT = pathlib.Path(pages.__file__).parent / "templates" / "judging.js"


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
  """A page of three clips; a decoder that paints each latent frame in a grey of its own."""

  def decode(latents: np.ndarray) -> np.ndarray:
    if latents.shape[1] == 1:  # references
      return np.zeros((len(latents), 1, 16, 16, 3), np.uint8)
    grey = np.repeat(latents.mean(axis=(2, 3, 4)), 4, axis=1)[:, :25]
    grey = np.clip(128 + 100 * grey, 0, 255).astype(np.uint8)
    return np.broadcast_to(grey[..., None, None, None], (*grey.shape, 16, 16, 3))

  monkeypatch.setattr(page.loading, "load_vae", lambda folder: None)
  monkeypatch.setattr(page, "Decoder", lambda vae: decode)
  folder = tmp_path / "candidates"
  write_records(folder / "00000-of-00001.array_record", map(candidates_of, range(4)))
  (folder / "candidates.json").write_text('{"candidates": {"seed": 0}}\n')
  c = preference_pairs.get_config("page")
  c.data.path, c.pairs, c.first, c.scale = str(folder), 2, 1, 1
  c.dimensions, c.title = ("lips", "gaze"), "Which <b>?"
  return c


def content_of(path: pathlib.Path) -> tuple[str, dict]:
  text = path.read_text(encoding="utf-8")
  (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
  return text, json.loads(data)


def test_the_page_needs_no_other_file_and_shows_two_candidates_of_each_clip(
  config: ConfigDict, tmp_path: pathlib.Path
):
  page.write_judging_page(config, tmp_path)
  text, data = content_of(tmp_path / "judge.html")
  assert not re.search(r'(src|href)="(?!data:)[^"{]', text) and "http" not in text
  assert "Which &lt;b&gt;?" in text and SCRIPT.read_text().strip() in text
  assert [one["clip_id"] for one in data["pairs"]] == ["clip 1", "clip 2"]
  assert [question["name"] for question in data["questions"]] == ["lips", "gaze"]
  for one in data["pairs"]:
    low, high = one["places"]
    assert 0 <= low < high < 3
    assert all(video.startswith("data:video/mp4;base64,AAAA") for video in one["videos"])
    assert one["videos"][0] != one["videos"][1]
    assert one["references"].startswith("data:image/png;base64,")
  assert data["candidates"] == pairs.made_hash(config.data.path)


SESSION = """
const fs = require("fs");
eval(fs.readFileSync(process.argv[1], "utf8") + "; globalThis.start = startJudging;");
const data = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
function session() {
  let judging = start(data, Math.random, null);
  const seen = [];
  while (true) {  // the video of the lower place always has the better lips; the gaze is the same
    const shown = judging.shown(), pair = data.pairs.find((p) => p.videos.includes(shown.left));
    seen.push([pair.clip_id, pair.videos.indexOf(shown.left)]);
    if (pair.clip_id !== "clip 3") {
      judging.answer(judging.open(), shown.left === pair.videos[0] ? "good" : "bad");
      const kept = JSON.parse(JSON.stringify(judging.state));
      judging = start(data, Math.random, kept);  // the page is reloaded
      judging.answer(judging.open(), "same");
      if (judging.open() !== null) throw new Error("a question is open");
    } else judging.answer("lips", "good");
    if (judging.isLast()) return { seen, done: judging.done(), result: judging.result() };
    judging.move(1);
  }
}
console.log(JSON.stringify(Array.from({ length: 40 }, session)));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_what_people_answered_reaches_the_judge_whichever_side_they_saw(
  config: ConfigDict, tmp_path: pathlib.Path
):
  config.pairs, config.first = 4, 0
  page.write_judging_page(config, tmp_path)
  _, data = content_of(tmp_path / "judge.html")
  places = {one["clip_id"]: one["places"] for one in data["pairs"]}
  (tmp_path / "data.json").write_text(json.dumps(data))
  words = ["node", "-e", SESSION, str(SCRIPT), str(tmp_path / "data.json")]
  done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
  orders, sides = set(), set()
  for session in json.loads(done.stdout):
    orders.add(tuple(clip for clip, _ in session["seen"]))
    sides |= {tuple(side) for side in session["seen"]}
    assert session["done"] == 3  # a pair with an open question is not saved
    (tmp_path / "said.json").write_text(json.dumps(session["result"]))
    said = judge.read_judgements(tmp_path / "said.json", pairs.made_hash(config.data.path))
    assert {one.clip_id for one in said} == {"clip 0", "clip 1", "clip 2"}
    for one in said:
      low, high = places[one.clip_id]
      swapped = one.first == high
      verdicts = {"lips": -1 if swapped else 1, "gaze": 0}
      assert one == Judgement(one.clip_id, *((high, low) if swapped else (low, high)), verdicts)
    won = judge.judged_pairs(said)
    for clip_id, (one,) in won.items():
      assert [one.winner, one.loser] == places[clip_id] and one.better == ("lips",)
  assert len(orders) > 2 and len(sides) == 8  # by chance in all but one of 10^10 runs


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(dimensions=("hair",)), r"dimensions: found \['hair'\], expected some of"),
    (dict(dimensions=()), "dimensions: found none"),
    (dict(first=4), "first, pairs: found 4, 2, expected some of 4 clips"),
  ],
)
def test_settings_that_make_no_sense_leave_nothing(
  config: ConfigDict, tmp_path: pathlib.Path, change: dict, message: str
):
  with config.ignore_type():
    config.update(change)
  with pytest.raises(ValueError, match=message):
    page.write_judging_page(config, tmp_path / "page")
  assert not (tmp_path / "page").exists()
