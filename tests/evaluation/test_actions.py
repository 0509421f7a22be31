"""Action detectors fire on scenes that show the action, and not on neutral or emotional ones."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.clip import EMOTIONS
from data_pipelines.puppets.behaviour import ACTIONS
from data_pipelines.puppets.scene import Scene, compose_scene
from lpm_jax.evaluation import actions, metrics


def measured(scene: Scene, read: np.ndarray | None = None) -> metrics.Measured:
  events = tuple(dataclasses.astuple(event) for event in scene.events)
  return metrics.Measured(scene.pose if read is None else read, scene.pose, scene.state, events)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
  return [
    compose_scene(seed, "idle", "heldout", actions=(name,), emotion=emotion)
    for emotion in ("neutral", "happiness", "sadness")
    for seed, name in enumerate(ACTIONS)
  ]


def test_true_tracks_are_recognised(scenes):
  scores = actions.action_scores([measured(scene) for scene in scenes])
  assert scores["actions_recognised"] == 1.0
  assert scores["actions"] >= 0.9 * len(scenes)


def test_noise_as_large_as_a_probe_s_error_does_not_matter(scenes):
  rng = np.random.default_rng(0)
  noisy = [measured(s, s.pose + rng.normal(0, 0.05, s.pose.shape)) for s in scenes]
  assert actions.action_scores(noisy)["actions_recognised"] > 0.97


def test_a_still_face_does_nothing(scenes):
  still = [measured(s, np.repeat(s.pose[:1], len(s.pose), 0)) for s in scenes]
  table = actions.confusion(still)
  assert all(set(row) == {actions.NONE} for row in table.values())


def test_another_action_is_not_the_one_asked_for(scenes):
  swapped = [
    measured(scene, other.pose)
    for scene, other in zip(scenes, scenes[3:] + scenes[:3], strict=True)
  ]
  assert actions.action_scores(swapped)["actions_recognised"] < 0.1


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_no_action_without_one(emotion):
  found = [
    actions.recognise(
      compose_scene(seed, "idle", "heldout", actions=(), emotion=emotion).pose, 0.9, 2, n
    )
    for seed in range(3)
    for n in ACTIONS
  ]
  assert np.mean([name == actions.NONE for name in found]) > 0.95
