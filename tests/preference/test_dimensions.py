"""Measurements of one video: a perfect one, a still one, and what a clip cannot decide."""

import numpy as np
import pytest

from data_pipelines.clip import Clip, ClipError
from data_pipelines.puppets.builder import puppet_clip
from data_pipelines.puppets.character import HIDDEN
from lpm_jax.evaluation.probe import Reading
from lpm_jax.preference.dimensions import DIMENSIONS, Scene, Take, measurements
from tests.training.test_base import encoded_clip


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
  return {kind: puppet_clip(i, "heldout", kind) for i, kind in enumerate(("idle", "dialogue"))}


def take(clip: Clip, *, still: bool) -> Take:
  """The render, or its first frame held, read without error."""
  frames = np.zeros(len(clip.video), int) if still else np.arange(len(clip.video))
  seen = {name: np.full(len(frames), clip.truth["attributes"][name], float) for name in HIDDEN}
  if still:  # nothing that is hidden in the first frame can be seen
    seen = {name: np.full(len(frames), 0.5) for name in HIDDEN}
  reading = Reading(clip.truth["pose"][frames], seen, np.zeros((len(frames), 5)))
  return Take(clip.video[frames], reading, Scene.of(clip, len(frames)))


def test_a_perfect_video_is_at_the_best_end_of_every_dimension(clips):
  decided = set()
  for clip in clips.values():
    found = measurements(take(clip, still=False))
    decided |= {name for name, value in found.items() if value is not None}
    best = dict(lips=1, rest=0, nods=1, reactions=1, gaze=1, liveliness=1, actions=1, emotion=1)
    for name, value in (best | dict(identity=1)).items():
      if found[name] is not None:
        assert found[name] == pytest.approx(value, abs=1e-5), (clip.clip_id, name)
  assert {"lips", "rest", "liveliness", "actions", "identity", "flicker", "colour"} <= decided


def test_a_still_picture_is_worse_where_something_should_happen(clips):
  for clip in clips.values():
    moving, still = (measurements(take(clip, still=how)) for how in (False, True))
    for name in ("lips", "liveliness", "actions", "identity"):
      if moving[name] is not None:
        assert still[name] < moving[name] - 0.3, (clip.clip_id, name)
    assert still["flicker"] == still["colour"] == 0.0


def test_what_a_clip_does_not_decide_is_none(clips):
  idle, spoken = (measurements(take(clips[name], still=False)) for name in ("idle", "dialogue"))
  assert idle["lips"] is None and spoken["lips"] is not None
  assert idle["actions"] is not None and spoken["actions"] is None
  assert list(idle) == list(DIMENSIONS)


def test_events_after_the_end_of_a_shorter_video_are_not_expected(clips):
  clip = clips["idle"]
  ends = max(event["end_s"] for event in clip.truth["events"])
  assert Scene.of(clip, round(ends * clip.fps) - 4).truth["events"] != clip.truth["events"]
  assert len(Scene.of(clip, 20).truth["pose"]) == len(Scene.of(clip, 20).state) == 20


def test_a_clip_without_truth_is_left_to_people():
  with pytest.raises(ClipError, match="clip 'clip 0': truth: pose: missing: people have to judge"):
    Scene.of(encoded_clip(0), 5)
