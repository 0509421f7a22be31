"""Idle actions recognised in a pose track: which one, if any, happened when it was asked for.

An action takes the face somewhere and back. What counts is the excursion from the line between the
ends of its time span, so that a lasting emotion is no action; it is named after the nearest
template, or "none" when staying put is nearer.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines.puppets.behaviour import ACTIONS
from data_pipelines.puppets.pose import POSE_FIELDS, POSE_INDEX
from lpm_jax.evaluation.metrics import Measured

NONE = "none"
SHIFT_S = 0.4  # an action may come this much early or late
HOLD = (0.32, 0.66)  # share of its span in which an action is at full strength
DECIDABLE = (
  0.5  # weighted distance that an action has to travel from what the emotion already shows
)
# Angles are small numbers; lids count less, for blinks come at any time; the torso counts nothing.
_WEIGHTS = {"yaw": 2.0, "pitch": 2.5, "roll": 3.0, "blink": 0.7, "lean_x": 0.0, "lean_y": 0.0}
WEIGHTS = np.array([_WEIGHTS.get(name, 1.0) for name in POSE_FIELDS], np.float32)


def excursion(pose: np.ndarray, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
  """Mean pose in the hold of a span minus the line between its ends, and that line's value there.

  Args:
    pose: float32 [T, 14].
    start: first frame of the span, may be a fraction or outside of the clip (the edge repeats).
    end: last frame of the span.

  Returns:
    (excursion [14], base [14]).
  """
  last = len(pose) - 1

  def around(low: float, high: float) -> np.ndarray:
    low, high = (int(np.clip(round(x), 0, last)) for x in (low, high))
    return pose[low : high + 1].mean(0)

  length = end - start
  base = 0.5 * (around(start - 1, start) + around(end, end + 1))
  return around(start + HOLD[0] * length, start + HOLD[1] * length) - base, base


def _templates(base: np.ndarray) -> np.ndarray:
  """Excursion of every action from a base pose [14]: [len(ACTIONS), 14]."""
  templates = np.zeros((len(ACTIONS), len(POSE_FIELDS)), np.float32)
  for row, action in zip(templates, ACTIONS.values(), strict=True):
    for name, target in action.pose.items():
      row[POSE_INDEX[name]] = target - base[POSE_INDEX[name]]
  return templates


def distances(pose: np.ndarray, start: float, end: float) -> np.ndarray:
  """Weighted distance of a span's excursion to each action and, last, to staying put.

  Infinite for an action that the base pose all but shows already.
  """
  moved, base = excursion(pose, start, end)
  templates = _templates(base)
  found = np.linalg.norm((templates - moved) * WEIGHTS, axis=1)
  found[np.linalg.norm(templates * WEIGHTS, axis=1) < DECIDABLE] = np.inf
  return np.append(found, np.linalg.norm(moved * WEIGHTS))


def recognise(pose: np.ndarray, start_s: float, end_s: float, asked: str, fps: float = 24.0) -> str:
  """What happened in a span in which `asked` was asked for: a name of ACTIONS or NONE.

  The span may shift by SHIFT_S; the shift that brings the asked action nearest decides.
  """
  names = [*ACTIONS, NONE]
  reach = round(SHIFT_S * fps)
  shifted = [
    distances(pose, start_s * fps + shift, end_s * fps + shift)
    for shift in sorted(range(-reach, reach + 1), key=abs)
  ]
  best = min(shifted, key=lambda found: found[names.index(asked)])
  return names[int(best.argmin())]


def confusion(clips: Sequence[Measured]) -> dict[str, dict[str, int]]:
  """Counts {asked: {recognised: n}} over the action events that their true track shows.

  An action that the emotion hides (a smile of somebody who smiles already) decides nothing and
  is left out, for every system alike.
  """
  table: dict[str, dict[str, int]] = {}
  for clip in clips:
    for _, start, end, asked in clip.events_of("action"):
      if end * clip.fps > len(clip.truth) or start < 0:
        continue
      if recognise(clip.truth, start, end, asked, clip.fps) != asked:
        continue
      row = table.setdefault(asked, {})
      found = recognise(clip.read, start, end, asked, clip.fps)
      row[found] = row.get(found, 0) + 1
  return table


def action_scores(clips: Sequence[Measured]) -> dict[str, float]:
  """Share of the asked idle actions that are recognised in their place, and how many there were."""
  table = confusion(clips)
  asked = sum(sum(row.values()) for row in table.values())
  right = sum(row.get(name, 0) for name, row in table.items())
  return {"actions_recognised": right / asked if asked else float("nan"), "actions": asked}
