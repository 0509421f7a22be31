"""Whether a long stream stays what it was: measures of every chunk over time, as one page."""

import os
from collections.abc import Sequence

import numpy as np

from lpm_jax.evaluation import page, plots
from lpm_jax.evaluation.pixels import colour_distance, luma

# (key, label): what is drawn over time, one figure each.
CURVES = (
  ("colour_drift", "colour away from the first picture, ΔE"),
  ("contrast", "contrast, standard deviation of luma"),
  ("sharpness", "sharpness, mean luma step between neighbours"),
  ("motion", "motion, mean luma step between frames"),
  ("chunk_ms", "time to make a chunk, ms"),
  ("resident_mb", "resident memory, MB"),
)


def measure(frames: np.ndarray, first: np.ndarray) -> dict[str, float]:
  """Drift of a chunk, frames uint8 [T, H, W, 3], from the first picture uint8 [H, W, 3]."""
  light = luma(frames)
  steps = [np.abs(np.diff(light, axis=axis)).mean() for axis in (1, 2)]
  return {
    "colour_drift": colour_distance(frames, first[None]),
    "contrast": float(light.std((1, 2)).mean()),
    "sharpness": float(np.mean(steps)),
    "motion": float(np.abs(np.diff(light, axis=0)).mean()),
  }


def write_page(
  path: str | os.PathLike, rows: Sequence[dict], report: dict, *, title: str, video: str
):
  """Writes a self-contained page, whole or not at all.

  Args:
    path: the .html file.
    rows: one a chunk: `seconds`, `state` and the keys of CURVES.
    report: of the session, at its end.
    title: heading.
    video: address of the video, relative to the page.
  """
  seconds = np.array([row["seconds"] for row in rows])
  figures = [
    (label, plots.curve_plot(seconds / 60, np.array([row[key] for row in rows]), label))
    for key, label in CURVES
  ]
  states = [row["state"] for row in rows]
  page.write_page(
    path,
    "stream.html",
    title=title,
    video=video,
    figures=figures,
    states={state: f"{states.count(state) / len(states):.0%}" for state in sorted(set(states))},
    numbers={k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in report.items()},
  )
