"""Videos -> numbers: the probe reads every video of a system, and groups of clips are measured."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from data_pipelines.clip import Clip
from data_pipelines.puppets.character import HIDDEN, visible_attributes
from data_pipelines.puppets.pose import POSE_INDEX
from lpm_jax.evaluation import actions, metrics, pixels
from lpm_jax.evaluation.metrics import Measured
from lpm_jax.evaluation.probe import Probe, Reading, read_video
from lpm_jax.models.audio import FRAMES_PER_LATENT

_EVENT_FIELDS = ("kind", "start_s", "end_s", "detail")
CHUNK = 24  # video frames of a chunk, by default
System = Callable[[Sequence[Clip]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Take:
  """One clip as one system plays it: video uint8 [T, H, W, 3] and what the probe reads in it."""

  clip: Clip
  video: np.ndarray
  reading: Reading

  @property
  def measured(self) -> Measured:
    return measured_of(self.reading, self.clip)


class _Scene(Protocol):
  """What a video should show, in a clip's fields."""

  state: np.ndarray
  truth: dict
  fps: float


def measured_of(reading: Reading, clip: _Scene) -> Measured:
  """What the probe read in a video of a clip, beside the clip's truth."""
  return Measured(
    read=reading.pose,
    truth=clip.truth["pose"],
    state=clip.state,
    events=events_of(clip.truth["events"]),
    fps=clip.fps,
  )


def events_of(told: Sequence[dict]) -> tuple[tuple[str, float, float, str], ...]:
  """Events of a truth as `Measured` has them. Raises KeyError where one lacks a field."""
  return tuple(tuple(event[key] for key in _EVENT_FIELDS) for event in told)


def take(probe: Probe, clip: Clip, video: np.ndarray) -> Take:
  """Reads a system's video of a clip. Raises ValueError when its shape is not the clip's."""
  if video.shape != clip.video.shape or video.dtype != np.uint8:
    raise ValueError(
      f"clip {clip.clip_id!r}: video of the system: found {video.dtype} {video.shape}, "
      f"expected uint8 {clip.video.shape}"
    )
  return Take(clip, video, read_video(probe, video))


def performance(takes: Sequence[Take], chunk: int = CHUNK) -> dict[str, float]:
  """Every pose and pixel measure over a group of takes; NaN where the group decides nothing.

  `chunk` is the length in video frames of those whose seams are looked for, in every system alike.
  """
  measured = [one.measured for one in takes]
  scores = {"clips": len(takes)}
  for measure in (
    metrics.lip_sync,
    metrics.mouth_motion,
    metrics.liveliness,
    metrics.nod_scores,
    metrics.reactions,
    metrics.gaze_shift,
    actions.action_scores,
    metrics.emotion_change,
  ):
    scores |= measure(measured)
  paired = {"psnr": pixels.psnr, "ssim": pixels.ssim}
  for name, function in paired.items():
    scores[name] = metrics.mean([function(one.video, one.clip.video) for one in takes])
  alone = {
    "flicker": pixels.flicker,
    "colour_drift": pixels.colour_drift,
    "freeze_ratio": pixels.freeze_ratio,
  }
  for name, function in alone.items():
    scores[name] = metrics.mean([function(one.video) for one in takes])
  videos = [one.video for one in takes]
  scores["seam_index"] = pixels.seam_index(videos, chunk)
  scores["seam_over_latents"] = pixels.seam_index(videos, chunk, FRAMES_PER_LATENT)
  scores["pose_error"] = metrics.mean(
    [float(np.abs(one.reading.pose - one.clip.truth["pose"]).mean()) for one in takes]
  )
  return scores


def by_group(
  takes: Sequence[Take], key: Callable[[Take], str], chunk: int = CHUNK
) -> dict[str, dict[str, float]]:
  """`performance` of each group of takes, groups in the order of their first clip."""
  groups: dict[str, list[Take]] = {}
  for one in takes:
    groups.setdefault(key(one), []).append(one)
  return {name: performance(group, chunk) for name, group in groups.items()}


def identity_scores(takes: Sequence[Take]) -> dict[str, dict[str, float]]:
  """Accuracy of every hidden attribute over the takes, and of all of them pooled under "all".

  A take decides on an attribute when its scene shows it (the true pose makes it visible) for at
  least four frames; the probe's majority over those frames is the verdict.
  """
  votes: dict[str, list[int]] = {name: [] for name in HIDDEN}
  truths: dict[str, list[int]] = {name: [] for name in HIDDEN}
  for one in takes:
    visible = visible_attributes(one.clip.truth["pose"])
    for name in HIDDEN:
      if visible[name].sum() >= 4:
        votes[name].append(metrics.attribute_vote(one.reading.attributes[name], visible[name]))
        truths[name].append(int(one.clip.truth["attributes"][name]))
  scores = {name: metrics.accuracy(votes[name], truths[name]) for name in HIDDEN}
  scores["all"] = metrics.accuracy(sum(votes.values(), []), sum(truths.values(), []))
  return scores


def mouth_track(one: Take) -> np.ndarray:
  """mouth_open float32 [T] as the probe reads it."""
  return one.reading.pose[:, POSE_INDEX["mouth_open"]]


def json_safe(value: object) -> object:
  """The same structure with plain Python numbers and None for every number that is not finite."""
  if isinstance(value, dict):
    return {str(key): json_safe(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [json_safe(item) for item in value]
  if isinstance(value, np.ndarray):
    return json_safe(value.tolist())
  if isinstance(value, np.generic):
    return json_safe(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
