"""Draws the contact sheets of the README: every style in several poses, large and at 64 pixels.

python -m data_pipelines.puppets.contact_sheet
"""

import pathlib

import numpy as np
from PIL import Image

from data_pipelines.puppets.character import (
  ALL_STYLES,
  Character,
  character_params,
  sample_character,
)
from data_pipelines.puppets.expressions import EXPRESSION_POSES
from data_pipelines.puppets.pose import make_pose
from data_pipelines.puppets.render import VIEW_YAW, render

IMAGES = pathlib.Path(__file__).parents[2] / "docs" / "images"
COLUMNS: dict[str, dict[str, float]] = {
  "neutral": {},
  "talking": {"mouth_open": 0.75, "mouth_width": 0.2, "yaw": 0.2, "gaze_x": -0.3, "brow": 0.2},
  "smile": {**EXPRESSION_POSES["happiness"], "yaw": -0.2},
  "surprise": EXPRESSION_POSES["surprise"],
  "left": {"yaw": VIEW_YAW["left"]},
  "right": {"yaw": VIEW_YAW["right"]},
  "back": {"yaw": VIEW_YAW["back"]},
}


def sheet(characters: list[Character], size: int, supersample: int) -> np.ndarray:
  """A grid uint8 [rows * size, columns * size, 3]: a character a row, a pose a column."""
  pose = np.concatenate([make_pose(1, **fields) for fields in COLUMNS.values()])
  rows = [render(character_params(c), pose, size, supersample) for c in characters]
  return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def contact_sheet(path: str | pathlib.Path, size: int = 256) -> None:
  """Writes the grid of all styles (rows) in all poses of COLUMNS as an image file."""
  characters = [sample_character(11 + i, style=s) for i, s in enumerate(ALL_STYLES)]
  _write(path, sheet(characters, size, supersample=3))


def training_size_sheet(path: str | pathlib.Path, scale: int = 3) -> None:
  """Writes the same grid at the 64 pixels a model sees, each pixel enlarged `scale` times."""
  characters = [sample_character(31 + i, style=s) for i, s in enumerate(ALL_STYLES)]
  small = sheet(characters, 64, supersample=2)
  _write(path, small.repeat(scale, axis=0).repeat(scale, axis=1))


def _write(path: str | pathlib.Path, image: np.ndarray) -> None:
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, optimize=True)


if __name__ == "__main__":
  contact_sheet(IMAGES / "styles.png")
  training_size_sheet(IMAGES / "puppets64.png")
