"""What candidates of a clip are compared in: measurements of one video, and what people are asked.

The measures are those of every evaluation, taken of a single clip; a measure that a clip cannot
decide is None. Puppets alone have the truth that most of them need.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from data_pipelines.clip import Clip, ClipError, EncodedClip, Measurements
from data_pipelines.puppets.character import HIDDEN, visible_attributes
from lpm_jax.evaluation import actions, metrics, pixels
from lpm_jax.evaluation.metrics import IDLE, LISTENING, SPEAKING, Measured
from lpm_jax.evaluation.probe import Reading
from lpm_jax.evaluation.scoring import measured_of

SEEN = 4  # frames in which an attribute has to be visible to be judged


@dataclasses.dataclass(frozen=True)
class Scene:
  """What a clip's frames should show: state int8 [T], truth of the renderer, frames a second."""

  state: np.ndarray
  truth: dict
  fps: float

  @classmethod
  def of(cls, clip: Clip | EncodedClip, frames: int) -> "Scene":
    """The first frames of a clip. Raises ClipError where the truth is missing."""
    for name in ("pose", "events", "attributes"):
      if name not in clip.truth:
        where = f"clip {clip.clip_id!r}{f' in {clip.file}' if clip.file else ''}"
        raise ClipError(f"{where}: truth: {name}: missing: people have to judge such clips")
    events = [event for event in clip.truth["events"] if event["end_s"] <= frames / clip.fps]
    truth = clip.truth | {"pose": clip.truth["pose"][:frames], "events": events}
    return cls(clip.state[:frames], truth, clip.fps)


@dataclasses.dataclass(frozen=True)
class Take:
  """A video uint8 [T, H, W, 3] of a scene, and what the probe reads in it."""

  video: np.ndarray
  reading: Reading
  scene: Scene

  @property
  def measured(self) -> Measured:
    return measured_of(self.reading, self.scene)


@dataclasses.dataclass(frozen=True)
class Dimension:
  """One thing that can be better or worse.

  Attributes:
    sign: 1 where more is better, -1 where less is.
    measure: of one take; NaN where it decides nothing.
    question: what people look at.
  """

  sign: int
  measure: Callable[[Take], float]
  question: str


def _lips(one: Take) -> float:
  return metrics.lip_sync([one.measured])["lip_correlation"]


def _rest(one: Take) -> float:
  """Root mean square of the mouth's opening where the scene keeps it closed and nobody speaks."""
  measured = one.measured
  inside = (measured.state != SPEAKING) & metrics.at_rest(measured)
  read, truth = measured.field("mouth_open")
  return float(np.sqrt(np.square((read - truth)[inside]).mean())) if inside.any() else math.nan


def _reactions(one: Take) -> float:
  found = metrics.reactions([one.measured])
  return metrics.mean([found["brows_on_question"], found["smile_on_laughter"]])


def _identity(one: Take) -> float:
  """Mean probability of the truth over the hidden attributes that the scene shows."""
  visible, found = visible_attributes(one.scene.truth["pose"]), []
  for name in HIDDEN:
    if visible[name].sum() >= SEEN:
      is_there = one.reading.attributes[name][visible[name]].mean()
      found.append(is_there if one.scene.truth["attributes"][name] else 1.0 - is_there)
  return metrics.mean(found)


# In the order in which people are asked.
DIMENSIONS = {
  "lips": Dimension(1, _lips, "Do the lips follow the speech?"),
  "rest": Dimension(-1, _rest, "Is the mouth at rest while the character is silent?"),
  "nods": Dimension(
    1, lambda one: metrics.nod_scores([one.measured])["nod_f1"], "Does it nod when it should?"
  ),
  "reactions": Dimension(1, _reactions, "Does it react to questions and laughter?"),
  "gaze": Dimension(
    1, lambda one: metrics.gaze_shift([one.measured])["gaze_shift"], "Is the gaze natural?"
  ),
  "liveliness": Dimension(
    1,
    lambda one: metrics.head_motion(one.measured, (LISTENING, IDLE)),
    "Is it alive while it listens or waits?",
  ),
  "actions": Dimension(
    1,
    lambda one: actions.action_scores([one.measured])["actions_recognised"],
    "Does it do what the text says?",
  ),
  "emotion": Dimension(
    1,
    lambda one: metrics.emotion_change([one.measured])["emotion_correlation"],
    "Does the face show the right emotion?",
  ),
  "identity": Dimension(1, _identity, "Is it the character of the references?"),
  "flicker": Dimension(-1, lambda one: pixels.flicker(one.video), "Is the picture steady?"),
  "colour": Dimension(-1, lambda one: pixels.colour_drift(one.video), "Do the colours stay?"),
}


def measurements(one: Take) -> Measurements:
  """All of DIMENSIONS; None where the clip decides nothing."""
  found = {name: float(each.measure(one)) for name, each in DIMENSIONS.items()}
  return {name: value if math.isfinite(value) else None for name, value in found.items()}
