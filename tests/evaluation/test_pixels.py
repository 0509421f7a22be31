"""Pixel measures against closed forms."""

import numpy as np
import pytest

from lpm_jax.evaluation import pixels


@pytest.fixture
def video() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def test_identical_videos_are_perfect(video):
  assert pixels.ssim(video, video) == pytest.approx(1.0, abs=1e-5)
  assert pixels.psnr(video, video) == pixels.PSNR_CAP


def test_psnr_of_a_constant_offset_is_exact():
  dark = np.full((2, 16, 16, 3), 100, np.uint8)
  assert pixels.psnr(dark, dark + 10) == pytest.approx(20 * np.log10(25.5), abs=1e-4)


def test_ssim_falls_with_noise(video):
  flat = np.full_like(video, 128)
  assert pixels.ssim(video, flat) < 0.2


def test_still_video_neither_flickers_nor_drifts_and_is_frozen(video):
  still = np.repeat(video[:1], 8, axis=0)
  assert pixels.flicker(still) == 0 and pixels.colour_drift(still) == 0
  assert pixels.freeze_ratio(still) == 1 and pixels.freeze_ratio(video) == 0


def test_flicker_sees_alternation_but_not_a_fade():
  fade = (np.arange(12)[:, None, None, None] * 5 * np.ones((1, 8, 8, 3))).astype(np.uint8)
  blink = ((np.arange(12) % 2)[:, None, None, None] * 10 * np.ones((1, 8, 8, 3))).astype(np.uint8)
  assert pixels.flicker(fade) == pytest.approx(0, abs=1e-3)
  assert pixels.flicker(blink) == pytest.approx(20, abs=1e-3)


def test_colour_drift_of_white_to_black_is_one_hundred():
  ends = np.zeros((24, 8, 8, 3), np.uint8)
  ends[:12] = 255
  assert pixels.colour_drift(ends) == pytest.approx(100, abs=0.1)


def test_seam_index_finds_a_jump_at_the_border():
  ramp = np.arange(20)[:, None, None, None] * np.ones((1, 8, 8, 3))
  smooth = ramp.astype(np.uint8)
  jump = (ramp + 9 * (np.arange(20) >= 10)[:, None, None, None]).astype(np.uint8)
  assert pixels.seam_index(smooth, [10]) == pytest.approx(1)
  assert pixels.seam_index(jump, [10]) == pytest.approx(10)
  assert np.isnan(pixels.seam_index(smooth, []))
