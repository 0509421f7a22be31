"""Clips of puppets, and the data set on disk."""

import json
import pickle

import numpy as np
import pytest

from data_pipelines.clip import TWIN, ClipError
from data_pipelines.puppets import references
from data_pipelines.puppets.builder import build, puppet_character, puppet_clip, puppet_source
from data_pipelines.puppets.character import HELD_OUT_STYLE, HIDDEN, STYLES, visible_attributes

TINY = {"frames": 9, "size": 16}
ARRAYS = ("video", "speak_audio", "listen_audio", "state", "references", "reference_kind")


def same(a, b) -> bool:
  arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)
  truth = all(np.array_equal(a.truth[name], b.truth[name]) for name in ("pose", "emotion"))
  rest = (a.text, a.character_id, a.style, a.truth["attributes"], a.truth["events"])
  return arrays and truth and rest == (b.text, b.character_id, b.style, *rest[3:])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  pytest.importorskip("tensorflow_datasets")
  folder = tmp_path_factory.mktemp("data")
  build(folder, {"train": 3, "heldout": 1}, seed=5, **TINY)
  return folder


def test_a_clip_is_its_index():
  assert same(puppet_clip(3, "train", **TINY), puppet_clip(3, "train", **TINY))
  assert not same(puppet_clip(3, "train", **TINY), puppet_clip(4, "train", **TINY))


def test_held_out_characters_and_style_are_new():
  train = {puppet_character(i, "train").character_id for i in range(2000)}
  unseen = [puppet_character(i, "heldout") for i in range(50)]
  assert len(train) == 800
  assert not train & {character.character_id for character in unseen}
  assert {character.style for character in unseen} == set(STYLES)
  assert puppet_character(0, "heldout_style").style == HELD_OUT_STYLE
  assert HELD_OUT_STYLE not in STYLES


def test_references_vary_and_always_hold_one_global():
  rng = np.random.default_rng(0)
  sets = [references.draw_references(rng) for _ in range(200)]
  assert all(sum(kind == references.GLOBAL for kind, _ in chosen) == 1 for chosen in sets)
  assert all(len(set(chosen)) == len(chosen) for chosen in sets)
  assert set().union(*sets) == set(references.ALL_REFERENCES)
  for kind in (references.BODY_VIEW, references.EXPRESSION):
    assert any(all(k != kind for k, _ in chosen) for chosen in sets)


def test_forced_actions_are_in_the_truth():
  clip = puppet_clip(0, "heldout", "idle", 73, size=16, actions=("yawns",), all_references=True)
  assert "yawns" in clip.text
  assert [e["detail"] for e in clip.truth["events"] if e["kind"] == "action"] == ["yawns"]
  assert json.loads(json.dumps(clip.truth["events"])) == clip.truth["events"]
  assert len(clip.references) == len(references.ALL_REFERENCES)


def test_build_and_read_give_equal_clips(data_dir):
  source = puppet_source(data_dir, "train")
  assert len(source) == 3
  for index, clip in enumerate(source):
    assert same(clip, puppet_clip(index, "train", seed=5, **TINY))
    assert clip.file.endswith("array_record-00000-of-00001")
  again = pickle.loads(pickle.dumps(source))
  assert same(again[2], source[2])
  with pytest.raises(IndexError):
    source[3]


def test_building_again_changes_nothing_and_another_recipe_is_refused(data_dir):
  files = {f: f.stat().st_mtime_ns for f in data_dir.rglob("*") if f.is_file()}
  build(data_dir, {"train": 3, "heldout": 1}, seed=5, **TINY)
  assert files == {f: f.stat().st_mtime_ns for f in data_dir.rglob("*") if f.is_file()}
  with pytest.raises(ValueError, match="holds the data set"):
    build(data_dir, {"train": 4}, seed=5, **TINY)


def test_a_set_of_one_kind_of_scene(tmp_path):
  build(tmp_path, {"train": 2}, seed=1, kind="idle", **TINY)
  for index, clip in enumerate(puppet_source(tmp_path, "train")):
    assert same(clip, puppet_clip(index, "train", "idle", seed=1, **TINY))
    assert not clip.state.any()


def test_twins_share_the_scene_and_differ_in_what_it_reveals(tmp_path):
  build(tmp_path, {"train": 2}, kind="twins", frames=73, size=16)
  one, other = puppet_source(tmp_path, "train")
  assert other.clip_id == one.clip_id + TWIN
  for name in ("text", "speak_audio", "reference_kind", "reference_label"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  np.testing.assert_array_equal(one.truth["pose"], other.truth["pose"])
  np.testing.assert_array_equal(one.video[0], other.video[0])
  differ = (one.video != other.video).any((1, 2, 3))
  shown = np.any(list(visible_attributes(one.truth["pose"]).values()), axis=0)
  assert shown.sum() >= 4 and differ[shown].mean() > 0.9
  assert (one.references != other.references).any((1, 2, 3)).sum() >= 4
  for name in HIDDEN:
    assert one.truth["attributes"][name] == 1 - other.truth["attributes"][name]
  pool = {puppet_character(i, "train").character_id for i in range(800)}
  assert one.character_id not in pool


def test_a_failing_build_leaves_nothing(tmp_path, monkeypatch):
  dataset = pytest.importorskip("data_pipelines.puppets.dataset")

  def fail(*_, **__):
    raise RuntimeError("the renderer broke")

  monkeypatch.setattr(dataset, "puppet_clip", fail)
  with pytest.raises(RuntimeError, match="the renderer broke"):
    build(tmp_path, {"train": 2}, **TINY)
  assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_wrong_requests_are_named(data_dir, tmp_path):
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    puppet_source(tmp_path, "train")
  with pytest.raises(ValueError, match="validation"):
    puppet_source(data_dir, "validation")
  with pytest.raises(ValueError, match="nonsense"):
    build(tmp_path, {"nonsense": 1})
  with pytest.raises(ValueError, match="train"):
    build(tmp_path, {"train": 0})
  with pytest.raises(ValueError, match="sleeping"):
    build(tmp_path, {"train": 1}, kind="sleeping")


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "missing"])
def test_a_damaged_record_file_names_itself(data_dir, damage, tmp_path):
  file = next(data_dir.rglob("*heldout*array_record*"))
  whole = file.read_bytes()
  try:
    if damage == "truncated":
      file.write_bytes(whole[: len(whole) // 2])
    elif damage == "overwritten":
      middle = len(whole) // 4
      file.write_bytes(whole[:middle] + b"\xa5" * (len(whole) // 2) + whole[middle * 3 :])
    else:
      file.unlink()
    with pytest.raises(ClipError, match=file.name):
      list(puppet_source(data_dir, "heldout"))
  finally:
    file.write_bytes(whole)
