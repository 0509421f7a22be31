"""`lpm evaluate` of one long stream: its last minutes beside its first, which hear the same.

A dialogue of known truth is repeated; every repetition is a block. Whatever a block measures, the
block before could have measured too, so that differences are the stream's own.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import zipfile

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.puppets.character import HIDDEN, visible_attributes
from lpm_jax import media
from lpm_jax.evaluation import metrics, page, pixels, plots
from lpm_jax.evaluation.metrics import Measured
from lpm_jax.evaluation.probe import Probe, Reading, load_probe, read_video
from lpm_jax.evaluation.scoring import events_of, json_safe
from lpm_jax.models.audio import FRAMES_PER_LATENT

SEAM = 1.1  # goals: at most
FROZEN = 0.05  # a video codec makes some small steps vanish
RETURNED = 0.01
NEAR = 0.1  # percent of the first block's frames that count as near the picture
JUDGED = (
  "lip_correlation",
  "attribute_confidence",
  "colour_drift",
  "seam_over_latents",
  "freeze_ratio",
  "near_picture",
)
CURVES = (
  ("lip_correlation", "lips, correlation with the truth"),
  ("attribute_confidence", "hidden attributes, probability of the truth where they can be seen"),
  ("colour_drift", "colour away from the first block, ΔE"),
  ("seam_over_latents", "seam index over borders of latent frames"),
  ("motion", "motion, mean step between frames"),
  ("from_picture", "distance from the main picture"),
)


@dataclasses.dataclass(frozen=True)
class Dialogue:
  """What a character should do in scenes of equal length, one after the other.

  Attributes:
    pose, state: float32 [T, 14] and int8 [T] of all scenes.
    events: of each scene, (kind, start_s, end_s, detail).
    attributes: of the character, by name.
    frames: of a scene.
    fps: video frames a second.
  """

  pose: np.ndarray
  state: np.ndarray
  events: tuple[tuple[tuple[str, float, float, str], ...], ...]
  attributes: dict[str, int]
  frames: int
  fps: float

  def scenes(self, reading: Reading) -> list[Measured]:
    """A block as the probe reads it, scene by scene."""
    cuts = [slice(i * self.frames, (i + 1) * self.frames) for i in range(len(self.events))]
    return [
      Measured(reading.pose[cut], self.pose[cut], self.state[cut], events, self.fps)
      for cut, events in zip(cuts, self.events, strict=True)
    ]


def read_dialogue(folder: str | os.PathLike) -> Dialogue:
  """Reads FOLDER/truth.npz of the showcase. Raises ValueError for a file that is none."""
  path = pathlib.Path(folder) / "truth.npz"
  try:
    with np.load(path) as file:
      told = json.loads(str(file["told"]))
      events = tuple(map(events_of, told["events"]))
      frames, fps = int(file["frames"]), float(file["fps"])
      pose, state = file["pose"], file["state"]
  except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path}: not the truth of a dialogue: {error!r}") from error
  if not len(pose) == len(state) == frames * len(events):
    raise ValueError(
      f"{path}: found {len(pose)} poses, {len(state)} states, expected {frames} of each for "
      f"{len(events)} scenes"
    )
  return Dialogue(pose, state, events, told["attributes"], frames, fps)


class Watcher:
  """Measures block after block of one stream, against its first one.

  Args:
    probe: reads the frames.
    dialogue: what every block should show.
    chunk: video frames between two seams; a block has a whole number of them.
  """

  def __init__(self, probe: Probe, dialogue: Dialogue, chunk: int):
    self._probe, self._dialogue, self._chunk = probe, dialogue, chunk
    self.blocks: list[dict[str, float]] = []
    self.scenes: list[dict[str, float]] = []
    self._begun: tuple[np.ndarray, float] | None = None

  def watch(self, video: np.ndarray):
    """Adds a block uint8 [T, H, W, 3] to `blocks`, and its parts to `scenes`."""
    dialogue, reading = self._dialogue, read_video(self._probe, video)
    seconds = video[:: round(dialogue.fps)]
    if self._begun is None:
      near = np.percentile(distances(video, video[0]), NEAR)
      self._begun = seconds, float(near)
    first, near = self._begun
    away = distances(video, first[0])
    scenes = dialogue.scenes(reading)
    scores = metrics.lip_sync(scenes) | metrics.mouth_motion(scenes) | metrics.nod_scores(scenes)
    scores |= attribute_scores(dialogue, reading, slice(None))
    scores["colour_drift"] = pixels.colour_distance(seconds, first)
    scores["seam_index"] = pixels.seam_index([video], self._chunk)
    scores["seam_over_latents"] = pixels.seam_index([video], self._chunk, FRAMES_PER_LATENT)
    scores["freeze_ratio"] = pixels.freeze_ratio(video)
    scores["near_picture"] = float((away < near).mean())
    self.blocks.append(scores)
    for i, scene in enumerate(scenes):
      cut = slice(i * dialogue.frames, (i + 1) * dialogue.frames)
      steps = np.abs(np.diff(video[cut].astype(np.int16), axis=0)).mean()
      row = {
        "seconds": len(self.scenes) * dialogue.frames / dialogue.fps,
        "lip_correlation": float(metrics.lip_curve(scene)[metrics.MAX_LAG]),
        "colour_drift": pixels.colour_distance(video[cut], first),
        "seam_over_latents": pixels.seam_index([video[cut]], self._chunk, FRAMES_PER_LATENT),
        "motion": float(steps),
        "from_picture": float(away[cut].mean()),
      }
      self.scenes.append(row | attribute_scores(dialogue, reading, cut))


def attribute_scores(dialogue: Dialogue, reading: Reading, part: slice) -> dict[str, float]:
  """How sure the probe is of the true hidden attributes in the frames whose pose shows them.

  `attribute_confidence` is the mean probability of the truth, an attribute counting as one;
  `attribute_accuracy` the share of attributes with the right majority. NaN where none can be seen.
  """
  visible = visible_attributes(dialogue.pose[part])
  sure, right = [], []
  for name in HIDDEN:
    seen, truth = visible[name], dialogue.attributes[name]
    if seen.any():
      of_one = reading.attributes[name][part]
      sure.append(float(np.abs(of_one[seen] - (1 - truth)).mean()))
      right.append(metrics.attribute_vote(of_one, seen) == truth)
  return {"attribute_confidence": metrics.mean(sure), "attribute_accuracy": metrics.mean(right)}


def distances(video: np.ndarray, picture: np.ndarray) -> np.ndarray:
  """Mean absolute difference of each frame [T, H, W, 3] from a picture, of 255: float32 [T]."""
  apart = (np.abs(frame.astype(np.int16) - picture).mean() for frame in video)
  return np.fromiter(apart, np.float32, len(video))


def compare(blocks: list[dict[str, float]], tolerance: float) -> list[dict]:
  """The last block beside the first: name, both values, goal, whether it is met.

  Lips and attributes may change by `tolerance` of the first block's, colour by that share of the
  range of lightness, 100. Seams are compared with the other borders of latent frames, where the
  autoencoder steps as well (`pixels.seam_index`). A frame is near the picture where only NEAR
  percent of the first block's are as near.
  """
  first, last = blocks[0], blocks[-1]
  kept = f"within {tolerance:.0%}"
  goals = {name: (kept, abs(last[name] / first[name] - 1) <= tolerance) for name in JUDGED[:2]}
  seams = [block["seam_over_latents"] for block in (first, last)]
  goals["colour_drift"] = f"<= {100 * tolerance:g} ΔE", last["colour_drift"] <= 100 * tolerance
  goals["seam_over_latents"] = f"<= {SEAM}", all(seam <= SEAM for seam in seams)
  frozen = last["freeze_ratio"] - first["freeze_ratio"]
  goals["freeze_ratio"] = f"<= {FROZEN:.0%} of frames more", frozen <= FROZEN
  goals["near_picture"] = f"<= {RETURNED:.0%} of frames", last["near_picture"] <= RETURNED
  return [
    dict(name=name, first=first[name], last=last[name], goal=goal, met=bool(met))
    for name, (goal, met) in goals.items()
  ]


def measure(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Measures the video of a config and writes workdir/long_run.json and long_run.html.

  Args:
    config: `inputs` (a folder of the showcase, with truth.npz), `video` (what `lpm stream` made of
      it with repeat), `chunk` (video frames between seams), `probe_weights`, `tolerance`.
    workdir: folder that is written.

  Returns what long_run.json holds: "blocks", "scenes", "goals". Raises ValueError for truth that
  cannot be read or a video shorter than two repetitions, MediaError for a file that is no video.
  """
  folder = pathlib.Path(workdir)
  media.check_writable(folder / "long_run.json")
  probe, dialogue = load_probe(config.probe_weights), read_dialogue(config.inputs)
  size, length = probe.config.size, len(dialogue.pose)
  frames = media.read_frames(config.video, size, size)
  watcher = Watcher(probe, dialogue, config.chunk)
  with tqdm(desc="long run", unit="block", disable=None) as bar:
    while len(video := list(itertools.islice(frames, length))) == length:
      watcher.watch(np.stack(video))
      bar.update()
  blocks, scenes = watcher.blocks, watcher.scenes
  if len(blocks) < 2:
    raise ValueError(
      f"{config.video}: found {len(blocks)} repetitions of {length} frames, expected 2 or more"
    )
  found = json_safe(
    {
      "minutes": len(blocks) * length / dialogue.fps / 60,
      "goals": compare(blocks, config.tolerance),
      "blocks": blocks,
      "scenes": scenes,
    }
  )
  page.write_whole(folder / "long_run.json", json.dumps(found, indent=1, allow_nan=False))
  figures = []
  for key, label in CURVES:
    known = [(row["seconds"] / 60, row[key]) for row in scenes if np.isfinite(row[key])]
    if known:
      figures.append((label, plots.curve_plot(*np.array(known).T, label)))
  page.write_page(
    folder / "long_run.html",
    "long_run.html",
    title=f"{found['minutes']:.0f} minutes of one stream",
    video=os.path.relpath(config.video, folder),
    figures=figures,
    **found,
  )
  for row in found["goals"]:
    values = ("n/a" if row[at] is None else f"{row[at]:.3f}" for at in ("first", "last"))
    print(f"{row['name']:22}", *map("{:>8}".format, values), f" {row['goal']}: {row['met']}")
  return found
