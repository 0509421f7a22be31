"""Scenes: what the character does follows from the two audio tracks and the text."""

import dataclasses
import functools

import numpy as np
import pytest

from data_pipelines.clip import EMOTIONS, SAMPLE_RATE, audio_samples
from data_pipelines.puppets.behaviour import ACTIONS
from data_pipelines.puppets.pose import POSE_INDEX
from data_pipelines.puppets.scene import FPS, SCENE_KINDS, Scene, compose_scene, window

SEEDS = range(12)
compose = functools.cache(compose_scene)


def track(scene: Scene, field: str) -> np.ndarray:
  return scene.pose[:, POSE_INDEX[field]]


def envelope(audio: np.ndarray, frames: int) -> np.ndarray:
  """Loudness of the 40 ms around each frame."""
  padded = np.pad(audio, 320)
  starts = np.round(np.arange(frames) / FPS * SAMPLE_RATE).astype(int)
  return np.array([np.sqrt(np.mean(padded[s : s + 640] ** 2)) for s in starts])


def near(scene: Scene, kind: str, before: float, after: float) -> np.ndarray:
  """Frames from `before` seconds ahead of an event of `kind` to `after` seconds behind it."""
  t = np.arange(len(scene.pose)) / FPS
  spans = [(e.start_s - before, e.end_s + after) for e in scene.events if e.kind == kind]
  return np.any([(t > a) & (t < b) for a, b in spans] + [t < 0], axis=0)


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_same_seed_gives_the_same_scene(kind):
  a, b = compose_scene(7, kind, "train"), compose_scene(7, kind, "train")
  for field in dataclasses.fields(Scene):
    x, y = getattr(a, field.name), getattr(b, field.name)
    assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
  other = compose_scene(8, kind, "train")
  assert not np.array_equal(a.pose, other.pose)


@pytest.mark.parametrize("frames", [9, 73, 97, 241])
@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_every_length_has_whole_tracks(kind, frames):
  scene = compose(3, kind, "heldout", frames)
  assert scene.pose.shape == (frames, len(POSE_INDEX))
  assert scene.speak_audio.shape == scene.listen_audio.shape == (audio_samples(frames),)
  assert scene.state.shape == scene.emotion.shape == (frames,)
  assert np.isfinite(scene.pose).all()


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_first_frames_are_a_main_picture(kind):
  for seed in SEEDS:
    start = compose(seed, kind, "train").pose[:5]
    assert (start[:, POSE_INDEX["mouth_open"]] == 0).all()
    assert np.abs(start).max() < 0.1


def test_kinds_hold_the_tracks_they_promise():
  for seed in SEEDS:
    sounds = {kind: compose(seed, kind, "train") for kind in SCENE_KINDS}
    heard = {kind: (s.speak_audio.any(), s.listen_audio.any()) for kind, s in sounds.items()}
    assert heard == {
      "speak": (True, False),
      "listen": (False, True),
      "idle": (False, False),
      "dialogue": (True, True),
    }
  assert set(compose(0, "dialogue", "heldout", 241).state) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["speak", "dialogue"])
def test_mouth_is_shut_when_the_character_is_silent(kind):
  for seed in SEEDS:
    scene = compose(seed, kind, "train")
    silent = ~near(scene, "speech", 0.061, 0.101)
    assert silent.any()
    assert (track(scene, "mouth_open")[silent] == 0).all()
    assert (track(scene, "mouth_width")[silent] == 0).all()


def test_mouth_is_shut_while_listening():
  for seed in SEEDS:
    assert (track(compose(seed, "listen", "train"), "mouth_open") == 0).all()


def test_lips_follow_the_loudness_of_the_speech_without_lag():
  by_lag = {lag: [] for lag in range(-2, 3)}
  for seed in SEEDS:
    scene = compose(seed, "speak", "heldout")
    loud, lips = envelope(scene.speak_audio, 73), track(scene, "mouth_open")
    for lag, found in by_lag.items():
      found.append(np.corrcoef(loud[2:-2], lips[2 + lag : 71 + lag])[0, 1])
  means = {lag: np.mean(found) for lag, found in by_lag.items()}
  assert means[0] > 0.5
  assert max(means, key=means.get) == 0


def test_a_nod_follows_each_phrase_end_of_the_partner():
  for seed in SEEDS:
    scene = compose(seed, "listen", "train")
    ends = [e.end_s for e in scene.events if e.kind == "partner_phrase_end"]
    nods = [e for e in scene.events if e.kind == "nod"]
    assert len(ends) == len(nods) >= 1
    for end, nod in zip(ends, nods, strict=True):
      assert 0.15 <= nod.start_s - end <= 0.35
      assert nod.end_s <= 73 / FPS
      loud = envelope(scene.listen_audio, 73)[round(end * FPS) + 2 : round(end * FPS) + 6]
      assert loud.max() < 0.02
      first, last = round(nod.start_s * FPS), round(nod.end_s * FPS)
      pitch = track(scene, "pitch")
      assert pitch[first] - pitch[first:last].min() > 0.18


def test_brows_rise_on_a_question_and_a_smile_answers_laughter():
  found = set()
  for seed in range(30):
    scene = compose(seed, "listen", "train", 73, None, "neutral")
    for field, kind in (("brow", "question"), ("smile", "laughter")):
      reaction = track(scene, field)
      if any(e.kind == kind for e in scene.events):
        found.add(kind)
        assert reaction.max() > 0.8
      else:
        assert reaction.max() < 0.1
  assert found == {"question", "laughter"}


def test_a_hesitation_moves_the_gaze_away_and_holds_the_head():
  seen = 0
  for seed in range(30):
    scene = compose(seed, "speak", "train", 73, None, "neutral")
    for event in (e for e in scene.events if e.kind == "hesitation"):
      seen += 1
      inside = slice(int((event.start_s + 0.15) * FPS) + 1, int((event.end_s - 0.05) * FPS))
      gaze = track(scene, "gaze_x")
      assert gaze[inside].min() > 0.4
      assert np.ptp(track(scene, "yaw")[inside]) < 0.01
      back = int((event.end_s + 0.3) * FPS)
      assert abs(gaze[back]) < 0.2
  assert seen >= 3


def test_forced_actions_are_in_text_events_and_pose():
  left = compose_scene(1, "idle", "train", actions=("looks left", "smiles"), emotion="neutral")
  right = compose_scene(1, "idle", "train", actions=("looks right", "smiles"), emotion="neutral")
  assert left.text.endswith("character looks left, then smiles")
  assert [e.detail for e in left.events if e.kind == "action"] == ["looks left", "smiles"]
  assert track(left, "gaze_x").min() < -0.9
  assert track(right, "gaze_x").max() > 0.9
  assert track(left, "smile").argmax() > track(left, "gaze_x").argmin()


def test_every_action_reaches_its_pose():
  for name, action in ACTIONS.items():
    scene = compose_scene(2, "idle", "train", actions=(name,), emotion="neutral")
    for field, value in action.pose.items():
      assert np.abs(track(scene, field) - value).min() < 0.12, (name, field)


def test_emotion_changes_smoothly_halfway():
  scene = compose_scene(4, "idle", "train", actions=(), emotion=("sadness", "happiness"))
  shown = [EMOTIONS[i] for i in scene.emotion]
  assert shown[20] == "sadness"
  assert shown[-1] == "happiness"
  smile = track(scene, "smile")
  assert smile[20] < -0.3 < 0.4 < smile[-1]
  assert np.abs(np.diff(smile)).max() < 0.12


def test_both_sides_can_speak_at_once():
  overlaps = 0
  for seed in range(30):
    scene = compose(seed, "dialogue", "train")
    both = (envelope(scene.speak_audio, 73) > 0.02) & (envelope(scene.listen_audio, 73) > 0.02)
    overlaps += both.sum() >= 3
  assert overlaps >= 3


def test_a_window_is_the_same_moment_of_the_long_scene():
  scene = compose(2, "dialogue", "train", 241)
  part = window(scene, 48, 73)
  assert np.array_equal(part.pose, scene.pose[48:121])
  assert np.array_equal(part.speak_audio, scene.speak_audio[32000 : 32000 + 48667])
  whole = {(e.kind, round(e.start_s - 2, 6)) for e in scene.events}
  assert {(e.kind, round(e.start_s, 6)) for e in part.events} <= whole


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    ({"kind": "sing"}, "sing"),
    ({"split": "test"}, "test"),
    ({"actions": ("juggles",)}, "juggles"),
    ({"emotion": "joy"}, "joy"),
    ({"kind": "listen", "actions": ("smiles",)}, "listen"),
    ({"actions": tuple(ACTIONS)[:5]}, "at most"),
  ],
)
def test_wrong_arguments_are_named(arguments, named):
  with pytest.raises(ValueError, match=named):
    compose_scene(**({"seed": 0, "kind": "idle", "split": "train"} | arguments))
