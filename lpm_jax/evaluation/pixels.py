"""Pixel measures that need no network: PSNR, SSIM, flicker, colour drift, seams, freezes.

All take uint8 videos [T, H, W, 3] and return plain floats. SSIM is written out here (numpy, Wang
et al. 2004 constants) because no image library is among the dependencies.
"""

from collections.abc import Sequence

import numpy as np

PSNR_CAP = 100.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def luma(video: np.ndarray) -> np.ndarray:
  """BT.601 luma float32 [T, H, W] in 0..255."""
  return video.astype(np.float32) @ _LUMA


def psnr(video: np.ndarray, target: np.ndarray) -> float:
  """Peak signal-to-noise ratio in dB, error pooled over the video; at most PSNR_CAP."""
  error = np.mean((video.astype(np.float32) - target.astype(np.float32)) ** 2)
  return float(min(PSNR_CAP, 10 * np.log10(255.0**2 / max(error, 1e-10))))


def ssim(video: np.ndarray, target: np.ndarray) -> float:
  """Structural similarity of the luma, 11x11 Gaussian window (sigma 1.5), averaged over frames."""
  x, y = luma(video), luma(target)
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  mean_x, mean_y = _window(x), _window(y)
  var_x = _window(x * x) - mean_x**2
  var_y = _window(y * y) - mean_y**2
  covariance = _window(x * y) - mean_x * mean_y
  score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  score /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
  return float(score.mean())


def _window(x: np.ndarray) -> np.ndarray:
  """Gaussian mean over the last two axes, where the 11x11 window fits."""
  taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  taps = (taps / taps.sum()).astype(np.float32)
  for axis in (-2, -1):
    x = np.lib.stride_tricks.sliding_window_view(x, len(taps), axis=axis) @ taps
  return x


def flicker(video: np.ndarray) -> float:
  """Mean absolute second difference of the mean luma over time (0..255 scale; 0 for a still)."""
  mean = luma(video).mean((1, 2))
  return float(np.abs(np.diff(mean, n=2)).mean()) if len(mean) > 2 else 0.0


def colour_drift(video: np.ndarray, frames: int = 12) -> float:
  """Distance in CIE Lab (Delta E 1976) between the mean colours of the first and last `frames`."""
  first, last = video[:frames], video[-frames:]
  return colour_distance(last, first)


def colour_distance(video: np.ndarray, other: np.ndarray) -> float:
  """Distance in CIE Lab (Delta E 1976) between the mean colours of two videos."""
  return float(np.linalg.norm(_lab(video).mean((0, 1, 2)) - _lab(other).mean((0, 1, 2))))


def _lab(video: np.ndarray) -> np.ndarray:
  """sRGB uint8 -> CIE Lab (D65) float32."""
  x = video.astype(np.float32) / 255
  linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  to_xyz = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
  )
  xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089], np.float32)
  f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
  lightness = 116 * f[..., 1] - 16
  return np.stack([lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def _frame_differences(video: np.ndarray) -> np.ndarray:
  """Mean absolute difference of neighbouring frames float32 [T - 1], 0..255 scale."""
  return np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3))


def seam_index(videos: Sequence[np.ndarray], chunk: int, every: int = 1) -> float:
  """How much more a video changes where one chunk ends than elsewhere: 1 is no seam.

  With d(t) the mean absolute difference of frames t and t + 1 over pixels and channels, frame 0 the
  picture and frames 1 .. `chunk` the first chunk: the mean of d at t = chunk, 2 chunk, ... over the
  mean of d at all other multiples of `every`, t > 0, both over all videos. With `every` 4 these are
  the other borders of latent frames, where a decoder of noisy latents steps as well. The step from
  the picture, d(0), is a seam of its own kind and counts on neither side. NaN without a border, and
  where nothing moves elsewhere.
  """
  at, elsewhere = [], []
  for video in videos:
    difference, step = _frame_differences(video)[1:], np.arange(1, len(video) - 1)
    at.append(difference[step % chunk == 0])
    elsewhere.append(difference[(step % chunk != 0) & (step % every == 0)])
  at, elsewhere = (np.concatenate(parts) if parts else np.zeros(0) for parts in (at, elsewhere))
  if not at.size or not elsewhere.any():
    return float("nan")
  return float(at.mean() / elsewhere.mean())


def freeze_ratio(video: np.ndarray, threshold: float = 0.1) -> float:
  """Share of frames whose mean difference to the one before is under `threshold` (of 255)."""
  difference = _frame_differences(video)
  return float((difference < threshold).mean()) if len(difference) else 0.0
