"""The pose of a puppet: fourteen numbers a frame, the exact ground truth of every clip."""

import numpy as np

POSE_FIELDS = (
  "mouth_open",  # 0 closed .. 1 wide open
  "mouth_width",  # -1 pursed (oo) .. +1 wide (ee)
  "smile",  # -1 corners down .. +1 smile
  "brow",  # -1 lowered .. +1 raised
  "frown",  # 0 .. 1 inner brows together
  "nose_wrinkle",  # 0 .. 1
  "blink",  # 0 open .. 1 closed
  "gaze_x",  # -1 .. 1, + is image right
  "gaze_y",  # -1 .. 1, + is up
  "yaw",  # radians, + turns the face to image right
  "pitch",  # radians, + is up
  "roll",  # radians, + is clockwise in the image
  "lean_x",  # -1 .. 1 torso shift, + is image right
  "lean_y",  # -1 .. 1 torso shift, + is up
)
POSE_INDEX = {name: i for i, name in enumerate(POSE_FIELDS)}


def make_pose(frames: int, **fields: float | np.ndarray) -> np.ndarray:
  """A pose track float32 [frames, 14]: neutral, but for the named fields (scalars or [frames])."""
  pose = np.zeros((frames, len(POSE_FIELDS)), np.float32)
  for name, value in fields.items():
    pose[:, POSE_INDEX[name]] = value
  return pose
