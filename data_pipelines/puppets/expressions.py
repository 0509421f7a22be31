"""What each expression does to the pose of a puppet at full intensity.

Scale by the intensity of an emotion (fields not named stay where they are). `EXPRESSION_POSES`
holds what a reference picture shows; `EMOTION_POSES` leaves out the opened mouth, which belongs to
speech in a clip.
"""

EXPRESSION_POSES: dict[str, dict[str, float]] = {
  "neutral": {},
  "happiness": {"smile": 1.0, "brow": 0.15, "mouth_open": 0.3, "mouth_width": 0.35},
  "sadness": {"smile": -0.85, "brow": 0.2, "frown": 0.55, "blink": 0.25, "gaze_y": -0.45},
  "anger": {
    "smile": -0.5,
    "brow": -0.85,
    "frown": 1.0,
    "nose_wrinkle": 0.3,
    "mouth_open": 0.28,
    "mouth_width": 0.55,
  },
  "surprise": {"brow": 1.0, "mouth_open": 0.8, "mouth_width": -0.35},
  "fear": {"smile": -0.4, "brow": 0.75, "frown": 0.7, "mouth_open": 0.4, "mouth_width": 0.5},
  "disgust": {
    "smile": -0.6,
    "brow": -0.35,
    "frown": 0.5,
    "nose_wrinkle": 1.0,
    "blink": 0.3,
    "mouth_width": 0.2,
  },
  "contempt": {
    "smile": 0.4,
    "brow": -0.3,
    "blink": 0.35,
    "gaze_x": 0.5,
    "gaze_y": -0.15,
    "roll": 0.1,
    "pitch": 0.1,
  },
}

EMOTION_POSES: dict[str, dict[str, float]] = {
  name: {
    field: value for field, value in fields.items() if field not in ("mouth_open", "mouth_width")
  }
  for name, fields in EXPRESSION_POSES.items()
}


def expression_pose(label: str) -> dict[str, float]:
  """The pose fields of one expression at full intensity. Raises KeyError for an unknown name."""
  return dict(EXPRESSION_POSES[label])
