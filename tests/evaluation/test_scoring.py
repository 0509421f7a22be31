"""From clips to numbers: a perfect system scores 1, a still picture nothing, pairs are balanced."""

import json

import numpy as np
import pytest

from data_pipelines.puppets.character import HIDDEN
from lpm_jax.evaluation import goals, run, scoring, suite
from lpm_jax.evaluation.probe import Probe, ProbeConfig


@pytest.fixture(scope="module")
def pairs():
  return list(suite.identity_clips(1))


def test_a_perfect_system_is_perfect(clips, perfect_take):
  scores = scoring.performance([perfect_take(clip) for clip in clips])
  for name in ("lip_correlation", "actions_recognised", "emotion_correlation", "ssim"):
    assert scores[name] == pytest.approx(1.0, abs=1e-4) or np.isnan(scores[name]), name
  assert scores["lip_lag_frames"] == 0 and scores["nod_f1"] == 1 and scores["pose_error"] == 0
  assert scores["mouth_motion_idle"] < 0.05 and scores["mouth_motion_listening"] < 0.05


def test_a_still_picture_performs_nothing(clips, still_take):
  scores = scoring.performance([still_take(clip) for clip in clips])
  assert scores["lip_correlation"] == 0 and np.isnan(scores["mouth_motion_idle"])
  assert scores["nod_f1"] == 0 and scores["actions_recognised"] == 0
  assert scores["freeze_ratio"] == 1 and scores["flicker"] == 0


def test_every_hidden_attribute_is_decided_and_balanced(pairs, perfect_take, still_take):
  scores = scoring.identity_scores([perfect_take(clip) for clip in pairs])
  assert {name: scores[name]["clips"] for name in HIDDEN} == dict.fromkeys(HIDDEN, 2)
  assert all(scores[name]["accuracy"] == 1 for name in scores)
  assert all(scores[name]["chance"] == 0.5 for name in scores)
  blind = scoring.identity_scores([still_take(clip) for clip in pairs])
  assert blind["all"]["accuracy"] == 0.5


def test_main_picture_gives_no_attribute_away(pairs):
  for clip, flipped in zip(pairs[::2], pairs[1::2], strict=True):
    difference = np.abs(clip.video[0].astype(int) - flipped.video[0].astype(int))
    assert difference.max() <= 2
    assert (clip.video != flipped.video).any()
    plain = suite.with_references(clip, suite.PLAIN_REFERENCES)
    assert len(plain.references) == 3 and plain.clip_id == clip.clip_id != flipped.clip_id


def test_twins_are_deterministic_and_differ_in_every_telling_reference(pairs):
  clip, flipped = (suite.with_references(c, suite.TELLING_REFERENCES).references for c in pairs[:2])
  assert len(clip) == 6
  again = [suite.identity_pair(suite.IDENTITY_INDEX, suite.REVEALING[0])[1].references]
  np.testing.assert_array_equal(again[0], pairs[1].references)
  assert (clip != flipped).any((1, 2, 3))[1:].all()


def test_style_and_kind_are_not_confounded():
  kinds = len(suite.SCENE_KINDS)
  seen = {(i % 4, (i + i // kinds) % kinds) for i in range(16)}
  assert len(seen) == 16


def test_results_are_json_without_nan(clips):
  probe = Probe(ProbeConfig(tuple(HIDDEN), ("a", "b"), (8, 8, 8), 16), rngs=run.nnx.Rngs(0))
  systems = {"render": run.render_system, "still": run.still_system}
  results, takes = run.run_systems(systems, {"heldout": clips[:2]}, probe, batch=2)
  text = json.dumps(results, allow_nan=False)
  assert "NaN" not in text and set(takes) == set(systems)
  assert [goal["passed"] for goal in results["goals"]] == [None] * len(goals.GOALS)


def test_wrong_video_of_a_system_is_named(clips):
  probe = Probe(ProbeConfig(tuple(HIDDEN), ("a",), (8, 8, 8), 16), rngs=run.nnx.Rngs(0))
  with pytest.raises(ValueError, match=clips[0].clip_id):
    scoring.take(probe, clips[0], clips[0].video[:-4])


def test_goals_are_judged_by_their_thresholds():
  good = {
    "heldout": {"lip_correlation": 0.9, "lip_lag_frames": -1.0, "nod_f1": 0.5},
    "heldout_style": {"lip_correlation": 0.8},
    "identity_without": {"all": {"accuracy": 0.55, "chance": 0.5}},
  }
  judged = {row["name"]: row["passed"] for row in goals.judge({"model": good})}
  assert judged["lip correlation"] and judged["lip lag, frames"]
  assert judged["nods after phrase ends, F1"] is False
  assert judged["held-out style, lip correlation of the trained styles'"]
  assert judged["hidden attributes without them, above chance"]
  assert judged["idle actions recognised"] is None
