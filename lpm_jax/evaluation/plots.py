"""The report's figures, as data URIs of PNG pictures."""

import base64
import io
import itertools

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg", force=False)

COLOURS = {"render": "#222222", "vae": "#c08a2e", "model": "#2563a8", "still": "#8a8f98"}
_OTHERS = ("#b3402e", "#2f8f5b", "#7a4fa3", "#c2559d", "#4d7f8c")  # further systems, in turn
_STATE_COLOURS = ("#ffffff", "#dbe8f6", "#e6f1e0")
_STATE_NAMES = ("idle", "speaking", "listening")


def data_uri(data: bytes, kind: str) -> str:
  """Bytes as a data URI of MIME type `kind`."""
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _finish(figure: Figure) -> str:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
  return data_uri(buffer.getvalue(), "image/png")


def _axes(width: float, height: float):
  figure = Figure(figsize=(width, height))
  axes = figure.subplots()
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#999999")
  axes.tick_params(colors="#555555", labelsize=8)
  return figure, axes


def track_plot(
  tracks: dict[str, np.ndarray],
  truth: np.ndarray,
  state: np.ndarray,
  label: str,
  fps: float = 24.0,
) -> str:
  """One pose field over time: the scene's truth, and what the probe reads in each system's video.

  Args:
    tracks: {system: float [T]}.
    truth: float [T].
    state: int8 [T], drawn as the background.
    label: name of the field on the vertical axis.
  """
  figure, axes = _axes(7.6, 1.9)
  seconds = np.arange(len(truth)) / fps
  edges = np.flatnonzero(np.diff(state)) + 1
  for part in np.split(np.arange(len(state)), edges):
    code = int(state[part[0]])
    axes.axvspan(part[0] / fps, (part[-1] + 1) / fps, color=_STATE_COLOURS[code], lw=0)
    axes.text(
      (part[0] + 1) / fps,
      1.02,
      _STATE_NAMES[code],
      fontsize=7,
      color="#777777",
      transform=axes.get_xaxis_transform(),
    )
  axes.plot(seconds, truth, color="#222222", lw=2.2, alpha=0.35, label="truth")
  others = itertools.cycle(_OTHERS)
  for name, track in tracks.items():
    axes.plot(seconds, track, color=COLOURS.get(name) or next(others), lw=1.2, label=name)
  axes.set_xlim(0, len(truth) / fps)
  axes.set_xlabel("seconds", fontsize=8, color="#555555")
  axes.set_ylabel(label, fontsize=8, color="#555555")
  axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
  return _finish(figure)


def confusion_plot(table: dict[str, dict[str, int]], names: list[str]) -> str:
  """Idle actions: rows what was asked, columns what was recognised, shares of a row."""
  rows = [name for name in names if name in table]
  counts = np.array([[table[row].get(column, 0) for column in names] for row in rows], float)
  figure, axes = _axes(6.4, 0.9 + 0.3 * len(rows))
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
  axes.set_xticks(range(len(names)), names, rotation=55, ha="right", fontsize=7)
  axes.set_yticks(range(len(rows)), rows, fontsize=7)
  for y, x in zip(*np.nonzero(counts), strict=True):
    colour = "white" if shares[y, x] > 0.55 else "#222222"
    axes.text(x, y, int(counts[y, x]), ha="center", va="center", fontsize=7, color=colour)
  return _finish(figure)


def curve_plot(minutes: np.ndarray, values: np.ndarray, label: str) -> str:
  """One measure over a stream: every chunk as a dot, and their running median."""
  figure, axes = _axes(7.6, 1.7)
  axes.plot(minutes, values, ".", ms=2, color="#9db9dc")
  width = max(1, len(values) // 40)
  parts = np.array_split(np.arange(len(values)), max(1, len(values) // width))
  middle = [(minutes[p].mean(), np.median(values[p])) for p in parts]
  axes.plot(*zip(*middle, strict=True), color=COLOURS["model"], lw=1.4)
  axes.set_xlabel("minutes", fontsize=8, color="#555555")
  axes.set_ylim(bottom=min(0.0, float(values.min())))
  axes.set_title(label, fontsize=8, color="#555555", loc="left")
  return _finish(figure)
