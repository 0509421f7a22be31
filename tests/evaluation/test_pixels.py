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


def grey(levels: np.ndarray) -> np.ndarray:
  """A video of even frames of these levels."""
  return (levels[:, None, None, None] * np.ones((1, 8, 8, 3))).astype(np.uint8)


def test_seam_index_is_the_change_at_borders_over_that_elsewhere():
  """Chunks of 4: borders between frames 4 and 5, 8 and 9, where 10 is added to steps of 2."""
  frame = np.arange(12)
  jumps = 2 * frame + 10 * (frame > 4) + 10 * (frame > 8)
  assert pixels.seam_index([grey(2 * frame)], 4) == pytest.approx(1)
  assert pixels.seam_index([grey(jumps)], 4) == pytest.approx(12 / 2)
  late = 2 * frame + 10 * (frame > 5)
  assert pixels.seam_index([grey(late)], 4) == pytest.approx(2 / ((7 * 2 + 12) / 8))


def test_seam_index_leaves_the_step_from_the_picture_out():
  frame = np.arange(12)
  assert pixels.seam_index([grey(2 * frame + 50 * (frame > 0))], 4) == pytest.approx(1)


def test_seam_index_tells_a_chunk_from_its_latents():
  """Every latent of 4 frames steps by 6 more, every chunk of 8 by 12."""
  frame = np.arange(17)
  stairs = 2 * frame + 6 * ((frame - 1) // 4) + 6 * (frame > 8)
  assert pixels.seam_index([grey(stairs)], 8, every=4) == pytest.approx(14 / 8)
  assert pixels.seam_index([grey(stairs)], 8) == pytest.approx(14 / ((12 * 2 + 2 * 8) / 14))


def test_seam_index_pools_videos_and_knows_what_it_cannot_decide():
  frame = np.arange(12)
  jumps, fast = grey(2 * frame + 10 * (frame > 4)), grey(4 * frame)
  assert pixels.seam_index([jumps, fast], 4) == pytest.approx(((12 + 2 + 4 + 4) / 4) / 3)
  still = np.zeros_like(jumps)
  assert np.isnan(pixels.seam_index([still], 4)) and np.isnan(pixels.seam_index([jumps[:5]], 4))
  assert np.isnan(pixels.seam_index([], 4))
