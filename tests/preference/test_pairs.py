"""Folders of candidates and of pairs: what is in them, and that runs that were killed go on."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.puppets import preference_pairs
from data_pipelines.clip import Candidates, ClipError, Preference
from data_pipelines.loader import example_from_clip, stack
from data_pipelines.records import RecordSource, write_records
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.diffusion.solvers import timesteps
from lpm_jax.distillation.shards import PerClip, clip_noise
from lpm_jax.preference import candidates, judge, pairs
from lpm_jax.preference.candidates import CandidateSettings
from lpm_jax.training.samples import encode_window
from lpm_jax.weights.shipped import save_module
from tests.distillation.test_trajectories import SIZES, encoded_clip, model

SETTINGS = CandidateSettings(
  count=3, steps=3, solver="euler", latents=7, slots=2, text_guidance=1.0, audio_guidance=1.0
)
LIPS = [[0.9, 0.5, 0.6], [0.5, 0.55, 0.52], [0.1, 0.2, 0.9], [0.3, 0.9, None]]


def candidates_of(index: int) -> Candidates:
  clip, rng = encoded_clip(index), np.random.default_rng(50 + index)
  made = rng.normal(size=(3, 7, 2, 2, 2)).astype(np.float16)
  return Candidates.of(clip, made, [{"lips": value, "rest": 0.0} for value in LIPS[index]])


def judged(folder: pathlib.Path, made: str, *said: tuple) -> str:
  entries = [
    dict(clip_id=f"clip {clip}", left=left, right=right, answers={"gaze": answer, "lips": "same"})
    for clip, left, right, answer in said
  ]
  content = {"format": judge.FORMAT, "candidates": made, "judgements": entries}
  (folder / "said.json").write_text(json.dumps(content))
  return str(folder / "said.json")


@pytest.fixture
def config(tmp_path: pathlib.Path) -> ConfigDict:
  """Four clips in two shards; nobody wins in the second clip."""
  folder = tmp_path / "candidates"
  write_records(folder / "00000-of-00002.array_record", map(candidates_of, (0, 1)))
  write_records(folder / "00001-of-00002.array_record", map(candidates_of, (2, 3)))
  (folder / "candidates.json").write_text('{"candidates": {"seed": 0}}\n')
  c = preference_pairs.get_config("pairs")
  c.data.path, c.most = str(folder), 1
  with c.unlocked():
    c.margins = ConfigDict({"lips": 0.1, "rest": 0.02})
  return c


def test_the_clearest_pair_of_each_clip_is_written_with_all_that_training_needs(
  config: ConfigDict, tmp_path: pathlib.Path
):
  count = pairs.write_pairs(config, tmp_path / "pairs")
  assert (count.clips, count.undecided, count.pairs) == (4, 1, 3)
  assert count.better == {"lips": 3}
  source = RecordSource(tmp_path / "pairs")
  assert [(source[i].clip_id, source[i].chosen) for i in range(3)] == [
    ("clip 0", [0, 1]),
    ("clip 2", [2, 0]),
    ("clip 3", [1, 0]),
  ]
  one, made = source[1], candidates_of(2)
  assert isinstance(one, Preference) and one.judge == "measurements" and one.better == ["lips"]
  assert one.measured == [made.measured[2], made.measured[0]]
  np.testing.assert_array_equal(one.winner, made.candidates[2])
  np.testing.assert_array_equal(one.loser, made.candidates[0])
  np.testing.assert_array_equal(one.speak_audio, made.speak_audio)


def test_several_pairs_of_a_clip_when_asked_for(config: ConfigDict, tmp_path: pathlib.Path):
  config.most = 9
  assert pairs.write_pairs(config, tmp_path / "pairs").pairs == 2 + 0 + 2 + 1


def test_people_judge_where_they_said_something(config: ConfigDict, tmp_path: pathlib.Path):
  made = pairs.made_hash(config.data.path)
  said = judged(tmp_path, made, (1, 2, 0, "bad"), (2, 0, 1, "good"), (3, 0, 1, "same"))
  config.judgements = said
  count = pairs.write_pairs(config, tmp_path / "pairs")
  assert (count.clips, count.undecided, count.better) == (4, 2, {"gaze": 2})
  source = RecordSource(tmp_path / "pairs")
  found = [(source[i].clip_id, source[i].chosen, source[i].judge) for i in range(2)]
  assert found == [("clip 1", [0, 2], "people"), ("clip 2", [0, 1], "people")]


def test_a_shard_without_pairs_leaves_a_count_alone(config: ConfigDict, tmp_path: pathlib.Path):
  config.margins.lips = 0.5
  pairs.write_pairs(config, tmp_path / "pairs")
  names = sorted(path.name for path in (tmp_path / "pairs").iterdir())
  assert names == [
    "00000-of-00002.count.json",
    "00001-of-00002.array_record",
    "00001-of-00002.count.json",
    "00001-of-00002.index.json",
    "pairs.json",
  ]


def test_a_killed_run_goes_on_with_what_is_missing(
  config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  class Killed(BaseException):
    """Nothing catches it."""

  whole, parts = tmp_path / "whole", tmp_path / "parts"
  expected, of_clip = pairs.write_pairs(config, whole), judge.measured_pairs

  def until_killed(measured, margins):
    if measured[0]["lips"] == LIPS[3][0]:
      raise Killed
    return of_clip(measured, margins)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(judge, "measured_pairs", until_killed)
    pairs.write_pairs(config, parts)
  left = sorted(path.name for path in parts.glob("*.array_record"))
  assert left == ["00000-of-00002.array_record"] and not list(parts.glob(".*"))
  before = (parts / left[0]).stat()
  assert pairs.write_pairs(config, parts) == expected
  assert (parts / left[0]).stat() == before
  assert contents(parts) == contents(whole)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(margins=dict(lips=0.2)), "margins.lips: the folder was made with 0.1, the config has"),
    (dict(most=2), "most: the folder was made with 1"),
    (dict(most=0), "most: found 0, expected at least 1"),
    (dict(margins=dict(lips=-1.0)), "margins.lips: found -1.0, expected a positive"),
    (dict(judgements="nowhere.json,"), "nowhere.json: not a file of judgements"),
  ],
)
def test_a_folder_keeps_to_its_settings(
  config: ConfigDict, tmp_path: pathlib.Path, change: dict, message: str
):
  pairs.write_pairs(config, tmp_path / "pairs")
  before = contents(tmp_path / "pairs")
  with config.ignore_type():
    config.update(change)
  with pytest.raises(ValueError, match=message):
    pairs.write_pairs(config, tmp_path / "pairs")
  assert contents(tmp_path / "pairs") == before


def test_what_cannot_be_judged_is_named(config: ConfigDict, tmp_path: pathlib.Path):
  shard = pathlib.Path(config.data.path) / "00000-of-00002.array_record"
  write_records(shard, [dataclasses.replace(candidates_of(0), measured=[])])
  with pytest.raises(ClipError, match="clip 'clip 0' in .*: measured: found nothing"):
    pairs.write_pairs(config, tmp_path / "a")
  write_records(shard, [encoded_clip(0)])
  with pytest.raises(ClipError, match="clip 'clip 0' in .*: candidates: missing"):
    pairs.write_pairs(config, tmp_path / "b")
  made = pairs.made_hash(config.data.path)
  write_records(shard, [candidates_of(0)])
  config.judgements = judged(tmp_path, made, (0, 5, 0, "good"))
  with pytest.raises(ClipError, match="judgements: found places 5 and 0, of 3 candidates"):
    pairs.write_pairs(config, tmp_path / "c")
  assert not list((tmp_path / "c").glob("*.array_record"))


# candidates


@pytest.fixture(scope="module", autouse=True)
def one_maker():
  """Runs share what makes the candidates, which compiles once."""
  shared = []

  def of(*given):
    if not shared:
      shared.append(PerClip(*given))
    return shared[0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(candidates, "PerClip", of)
    yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigDict, pathlib.Path]:
  """The candidates of three clips; nobody measured them."""
  folder = tmp_path_factory.mktemp("candidates")
  write_records(folder / "clips" / "0.array_record", map(encoded_clip, range(3)))
  path, config = folder / "weights" / "base.safetensors", dataclasses.asdict(SIZES)
  save_module(path, model(), config=config, dtype="float32")
  c = preference_pairs.get_config("candidates")
  c.data.path, c.weights, c.probe_weights = str(folder / "clips"), str(folder / "weights"), ""
  c.batch_size, c.clips_per_shard = 2, 2
  c.candidates.update(dataclasses.asdict(SETTINGS))
  candidates.write_candidates(c, folder / "made")
  return c, folder / "made"


def test_candidates_are_what_the_solver_makes_of_each_seed(made):
  source = RecordSource(made[1])
  assert len(source) == 3 and len(source.files) == 2
  clip = encoded_clip(1)
  batch = stack([example_from_clip(clip, np.random.default_rng((0, 1)), SETTINGS.cut(16))])
  velocity = guided_velocity(model(), encode_window(model(), batch), 1.0, 1.0)
  run, clean = jax.jit(velocity), jnp.asarray(batch["latents"])
  for n in range(3):
    x = clip_noise(0, jnp.array([1]), n, clean.shape[1:]).at[:, 0].set(clean[:, 0])
    for now, later in zip(timesteps(3, 2.5)[:-1], timesteps(3, 2.5)[1:], strict=True):
      t = jnp.full((1, 7), now).at[:, 0].set(0.0)
      x = (x + (later - now) * run(x, t)).at[:, 0].set(clean[:, 0])
    np.testing.assert_allclose(source[1].candidates[n], x[0], atol=0.02, rtol=2e-3)
  first, second = source[1].candidates[:2].astype(np.float32)
  assert np.abs(first - second)[1:].mean() > 0.1 and (first[0] == second[0]).all()


def test_a_record_has_the_references_that_the_model_saw(made):
  one = RecordSource(made[1])[0]
  assert isinstance(one, Candidates) and one.measured == []
  seen = list(zip(one.reference_kind.tolist(), one.reference_label.tolist(), strict=True))
  assert len(seen) == 2 and seen[0] == (0, 0) and seen[1] in ((1, 2), (2, 5))
  whole = encoded_clip(0)
  for kind, picture in zip(one.reference_kind, one.references, strict=True):
    np.testing.assert_array_equal(picture, whole.references[whole.reference_kind == kind][0])


def test_clips_are_measured_as_they_are_made(made, tmp_path, monkeypatch):
  config, folder = ConfigDict(made[0].to_dict()), tmp_path / "made"
  config.probe_weights = "puppets"
  monkeypatch.setattr(
    candidates, "_load_measurer", lambda vae, probe: lambda clip, latents: [{"lips": 0.5}] * 3
  )
  candidates.write_candidates(config, folder)
  assert RecordSource(folder)[2].measured == [{"lips": 0.5}] * 3
  settings = json.loads((folder / "candidates.json").read_text())
  assert set(settings["instruments"]) == {"vae", "probe"}
  with pytest.raises(ValueError, match="instruments.probe: the folder was made with"):
    candidates.write_candidates(made[0], folder)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(count=1), "count: found 1, expected at least 2"),
    (dict(solver="heun"), "solver: found 'heun'"),
    (dict(shift=0.0), "shift: found 0.0"),
    (dict(latents=1), "latents: found 1"),
  ],
)
def test_settings_that_make_no_sense_are_named(change: dict, message: str):
  with pytest.raises(ValueError, match=message):
    CandidateSettings(**change)


def test_wrong_candidates_are_named():
  clip = encoded_clip(0)
  made = np.zeros((2, 7, 2, 2, 2), np.float16)
  with pytest.raises(ClipError, match="'clip 0': candidates: found 1, expected at least 2"):
    Candidates.of(clip, made[:1], [])
  with pytest.raises(ClipError, match="'clip 0': measured: found 1 of 2 candidates"):
    Candidates.of(clip, made, [{}])
  with pytest.raises(ClipError, match="'clip 0': candidates: found 9 frames, expected 1 to 8"):
    Candidates.of(clip, np.zeros((2, 9, 2, 2, 2), np.float16), [])
