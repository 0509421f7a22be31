"""Every measure against tracks whose answer is known in closed form."""

import numpy as np
import pytest

from data_pipelines.puppets.pose import make_pose
from lpm_jax.evaluation import metrics
from lpm_jax.evaluation.metrics import IDLE, LISTENING, SPEAKING, Measured

FRAMES, FPS = 145, 24.0


def states(code: int, frames: int = FRAMES) -> np.ndarray:
  return np.full(frames, code, np.int8)


def syllables(frames: int = FRAMES) -> np.ndarray:
  t = np.arange(frames) / FPS
  return np.clip(0.4 + 0.3 * np.sin(2 * np.pi * 4.1 * t) + 0.2 * np.sin(2 * np.pi * 1.3 * t), 0, 1)


def spoken(read_mouth: np.ndarray, truth_mouth: np.ndarray) -> Measured:
  return Measured(
    make_pose(FRAMES, mouth_open=read_mouth),
    make_pose(FRAMES, mouth_open=truth_mouth),
    states(SPEAKING),
  )


@pytest.mark.parametrize("lag", [-3, 0, 2])
def test_lip_lag_is_the_delay_of_the_video(lag):
  mouth = syllables(FRAMES + 20)
  clip = spoken(mouth[10 - lag : 10 - lag + FRAMES], mouth[10 : 10 + FRAMES])
  assert metrics.lip_sync([clip])["lip_lag_frames"] == lag


def test_perfect_lips_score_one_whatever_their_scale():
  scores = metrics.lip_sync([spoken(0.1 + 0.5 * syllables(), syllables())])
  assert scores["lip_correlation"] == pytest.approx(1.0, abs=1e-6)


def test_still_picture_has_no_lip_correlation_and_no_lag():
  scores = metrics.lip_sync([spoken(np.zeros(FRAMES), syllables())])
  assert scores["lip_correlation"] == 0.0 and np.isnan(scores["lip_lag_frames"])
  assert np.isnan(
    metrics.mouth_motion([spoken(np.zeros(FRAMES), syllables())])["mouth_motion_idle"]
  )


def test_silent_clips_do_not_enter_lip_sync():
  silent = Measured(make_pose(FRAMES), make_pose(FRAMES), states(IDLE))
  scores = metrics.lip_sync([silent, spoken(syllables(), syllables())])
  assert scores["lip_clips"] == 1 and scores["lip_correlation"] == pytest.approx(1.0)


def test_mouth_motion_is_relative_to_speaking_and_skips_requested_motion():
  mouth = np.concatenate([syllables(72), np.zeros(73)])
  state = np.concatenate([states(SPEAKING, 72), states(IDLE, 73)])
  truth = make_pose(FRAMES, mouth_open=mouth)
  read = mouth.copy()
  read[72:] = 0.1 * syllables(73)
  ratio = metrics.mouth_motion([Measured(make_pose(FRAMES, mouth_open=read), truth, state)])
  assert 0.05 < ratio["mouth_motion_idle"] < 0.15
  yawn = mouth.copy()
  yawn[100:130] = np.hanning(30)
  asked = Measured(make_pose(FRAMES, mouth_open=yawn), make_pose(FRAMES, mouth_open=yawn), state)
  assert metrics.mouth_motion([asked])["mouth_motion_idle"] == 0.0


def nodding(at_s: list[float], depth: float = 0.15) -> np.ndarray:
  t = np.arange(FRAMES) / FPS
  return -depth * sum(np.exp(-(((t - s) / 0.12) ** 2)) for s in at_s) + 0.01 * np.sin(t)


def test_liveliness_is_the_share_of_the_scene_s_head_motion_by_state_and_never_more():
  sway = 0.2 * np.sin(2 * np.pi * np.arange(FRAMES) / FPS)
  half = np.concatenate([states(LISTENING, 72), states(IDLE, 73)])
  gain = np.where(half == LISTENING, 0.5, 3.0)
  clip = Measured(make_pose(FRAMES, yaw=gain * sway), make_pose(FRAMES, yaw=sway), half)
  scores = metrics.liveliness([clip])
  assert scores["liveliness_listening"] == pytest.approx(0.5, abs=0.01)
  assert scores["liveliness_idle"] == 1.0
  still = Measured(clip.read, make_pose(FRAMES), half)  # a scene without motion decides nothing
  assert np.isnan(list(metrics.liveliness([still]).values())).all()


def test_nod_detector_counts_nods_and_ignores_slow_drift():
  assert len(metrics.nod_frames(nodding([1.0, 2.5, 4.0]))) == 3
  assert metrics.nod_frames(np.linspace(0, -0.3, FRAMES)) == []
  assert metrics.nod_frames(nodding([2.0], depth=0.02)) == []
  at = metrics.nod_frames(nodding([2.5]))[0]
  assert abs(at - 60) <= 1


def test_nod_scores_count_hits_misses_and_false_nods():
  ends = (("partner_phrase_end", 0.2, 0.7, ""), ("partner_phrase_end", 2.0, 3.0, ""))
  truth = make_pose(FRAMES, pitch=nodding([1.1, 3.4]))
  both = Measured(truth, truth, states(LISTENING), ends)
  assert metrics.nod_scores([both])["nod_f1"] == 1.0
  half = Measured(make_pose(FRAMES, pitch=nodding([1.1, 5.0])), truth, states(LISTENING), ends)
  scores = metrics.nod_scores([half])
  assert scores["nod_precision"] == 0.5 and scores["nod_recall"] == 0.5 and scores["nod_f1"] == 0.5
  still = Measured(make_pose(FRAMES), truth, states(LISTENING), ends)
  assert metrics.nod_scores([still])["nod_f1"] == 0.0


def test_gaze_shift_wants_the_scene_s_direction():
  away = np.zeros(FRAMES)
  away[46:72] = 0.8
  event = (("hesitation", 2.0, 3.0, "um"),)
  truth = make_pose(FRAMES, gaze_x=away, gaze_y=away)
  reads = (truth, 0.6 * truth, -truth, make_pose(FRAMES))
  scores = [
    metrics.gaze_shift([Measured(read, truth, states(SPEAKING), event)])["gaze_shift"]
    for read in reads
  ]
  assert scores == [1.0, 1.0, 0.0, 0.0]


def test_emotion_jump_is_steeper_than_the_scene():
  ramp = np.clip((np.arange(FRAMES) - 40) / 48, 0, 1)
  jump = (np.arange(FRAMES) > 64).astype(np.float32)
  truth = make_pose(FRAMES, smile=ramp)
  same = metrics.emotion_change([Measured(truth, truth, states(IDLE))])
  step = metrics.emotion_change([Measured(make_pose(FRAMES, smile=jump), truth, states(IDLE))])
  assert same["emotion_steepness"] == pytest.approx(1.0) and same["emotion_correlation"] > 0.999
  assert step["emotion_steepness"] > 5


def test_attribute_vote_reads_visible_frames_only():
  visible = np.array([False, False, True, True, True])
  assert metrics.attribute_vote(np.array([1, 1, 0.1, 0.2, 0.9]), visible) == 0
  assert metrics.attribute_vote(np.ones(5), np.zeros(5, bool)) == -1
  scores = metrics.accuracy([1, 0, -1, 1], [1, 1, 1, 1])
  assert (
    scores["clips"] == 3 and scores["accuracy"] == pytest.approx(2 / 3) and scores["chance"] == 1
  )


def test_empty_sets_are_nan_not_errors():
  for measure in (metrics.lip_sync, metrics.nod_scores, metrics.gaze_shift, metrics.mouth_motion):
    assert np.isnan(next(iter(measure([]).values())))
  assert np.isnan(metrics.emotion_change([])["emotion_correlation"])
