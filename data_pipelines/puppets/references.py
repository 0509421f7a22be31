"""The reference pictures of a clip: which ones it has, and the pose each of them shows."""

import numpy as np

from data_pipelines.clip import EXPRESSIONS, LABELS_OF_KIND, REFERENCE_KINDS, VIEWS
from data_pipelines.puppets.expressions import expression_pose
from data_pipelines.puppets.pose import make_pose
from data_pipelines.puppets.render import VIEW_YAW

GLOBAL, BODY_VIEW, EXPRESSION = range(len(REFERENCE_KINDS))
ALL_REFERENCES = tuple(
  (kind, label) for kind, labels in enumerate(LABELS_OF_KIND) for label in range(labels)
)
_MISSING = 0.15  # share of clips without any body view, and of those without any expression


def draw_references(rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
  """(kind, label) of a clip's references: global, then 0-4 body views and 0-8 expressions."""
  chosen = [(GLOBAL, 0)]
  for kind in (BODY_VIEW, EXPRESSION):
    labels = LABELS_OF_KIND[kind]
    count = 0 if rng.random() < _MISSING else int(rng.integers(1, labels + 1))
    chosen += [(kind, int(i)) for i in sorted(rng.choice(labels, size=count, replace=False))]
  return tuple(chosen)


def reference_pose(kind: int, label: int, rng: np.random.Generator) -> np.ndarray:
  """The pose float32 [1, 14] of one reference.

  The global picture is of another moment: mouth closed, head and eyes anywhere near the front.
  Raises ValueError for a kind that is not in REFERENCE_KINDS.
  """
  fields = {name: float(rng.uniform(-0.06, 0.06)) for name in ("yaw", "pitch", "roll")}
  fields |= {"lean_x": float(rng.uniform(-0.3, 0.3)), "lean_y": float(rng.uniform(-0.3, 0.3))}
  if kind == GLOBAL:
    fields["yaw"] *= 3
    fields |= {
      "smile": float(rng.uniform(-0.2, 0.3)),
      "gaze_x": float(rng.uniform(-0.6, 0.6)),
      "gaze_y": float(rng.uniform(-0.4, 0.4)),
      "brow": float(rng.uniform(-0.15, 0.25)),
    }
  elif kind == BODY_VIEW:
    fields["yaw"] += VIEW_YAW[VIEWS[label]]
  elif kind == EXPRESSION:
    strength = float(rng.uniform(0.9, 1.0))
    for name, value in expression_pose(EXPRESSIONS[label]).items():
      fields[name] = fields.get(name, 0.0) + strength * value
  else:
    raise ValueError(f"kind of reference: found {kind}, expected 0..{len(REFERENCE_KINDS) - 1}")
  return make_pose(1, **fields)
