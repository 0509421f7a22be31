"""Procedural puppet characters: independent visible and hidden attributes drawn from a seed.

A hidden attribute cannot be seen in the main picture (neutral, mouth closed, frontal): it shows
only in some poses, which `visible_attributes` names, so only a reference picture can tell a model
about it.
"""

import dataclasses

import numpy as np

from data_pipelines.puppets.pose import POSE_INDEX

STYLES = ("photographic", "anime", "game", "sketch")
HELD_OUT_STYLE = "clay"
ALL_STYLES = (*STYLES, HELD_OUT_STYLE)
HIDDEN = {
  "tooth_colour": 2,  # white, yellow
  "tooth_gap": 2,
  "gold_tooth": 2,
  "forehead_wrinkles": 2,
  "nose_wrinkles": 2,
  "ear_ring": 2,
  "hair_bun": 2,
  "birthmark": 2,
}
TRAIN_SEEDS = range(0, 10_000)
FIRST_HELDOUT_SEED = 1_000_000

Colour = tuple[float, float, float]

_SKINS = ("ffdcc4", "f6c7a4", "e8b088", "cf9468", "b07a50", "8d5b3a", "6b4430", "f3cdb8")
_HAIRS = ("2b2230", "4a2f23", "7a4a2a", "b5793a", "e6c069", "a83e24", "8d8f9c", "35507e", "7b3f7f")
_EYES = ("3f7fc4", "4c9a5b", "7a4a24", "3a2c28", "8a8f3a", "7355b0", "2f9c9c")
_CLOTHES = (
  "c8423f",
  "2f6fb0",
  "3f8f5f",
  "e0a030",
  "6a4c93",
  "e8e4da",
  "30343f",
  "d9739c",
  "2ba3a3",
)
_BACKGROUNDS = ("9cc4d8", "d8c7a4", "b9cfa5", "c9b3d4", "e0b7a8", "8fa3b8", "a9d0c4", "d6d3cc")
FRINGES = ("straight", "swept left", "swept right", "peaked", "scalloped")
PATTERNS = ("plain", "stripes", "lapels", "buttons")


@dataclasses.dataclass(frozen=True)
class Character:
  """One puppet. Colours are RGB in 0..1; sizes are factors or offsets around a mean puppet."""

  character_id: str
  style: str
  skin: Colour
  hair: Colour
  eye: Colour
  lips: Colour
  clothes: Colour
  accent: Colour
  background: Colour
  face_width: float
  face_height: float
  jaw_taper: float
  cheeks: float
  eye_size: float
  eye_spacing: float
  eye_tilt: float
  brow_thickness: float
  brow_arch: float
  nose_size: float
  mouth_size: float
  lip_fullness: float
  fringe: str
  hairline: float
  hair_volume: float
  hair_length: float
  tuft: float
  blush: float
  pattern: str
  tooth_colour: int
  tooth_gap: int
  gold_tooth: int
  forehead_wrinkles: int
  nose_wrinkles: int
  ear_ring: int
  hair_bun: int
  birthmark: int


def sample_character(seed: int, *, style: str | None = None) -> Character:
  """The character of a seed; a given style replaces the drawn one and leaves everything else alone.

  Train seeds are TRAIN_SEEDS, held-out ones start at FIRST_HELDOUT_SEED. Raises ValueError for a
  style that is not in ALL_STYLES.
  """
  rng = np.random.default_rng([seed, 0x9A2])
  drawn = STYLES[rng.integers(len(STYLES))]
  style = drawn if style is None else style
  if style not in ALL_STYLES:
    raise ValueError(f"style: found {style!r}, expected one of {ALL_STYLES}")
  skin = _draw(rng, _SKINS, 0.03)
  clothes, accent = rng.choice(len(_CLOTHES), 2, replace=False)
  redden = rng.uniform(0.25, 0.6)
  fields = {
    "skin": skin,
    "hair": _draw(rng, _HAIRS, 0.05),
    "eye": _draw(rng, _EYES, 0.05),
    "lips": _mix(tuple(0.82 * c for c in skin), (0.72, 0.16, 0.2), redden),
    "clothes": _rgb(_CLOTHES[clothes]),
    "accent": _rgb(_CLOTHES[accent]),
    "background": _draw(rng, _BACKGROUNDS, 0.04),
    "face_width": rng.uniform(0.93, 1.07),
    "face_height": rng.uniform(0.95, 1.05),
    "jaw_taper": rng.uniform(0.02, 0.3),
    "cheeks": rng.uniform(0.0, 0.1),
    "eye_size": rng.uniform(0.9, 1.15),
    "eye_spacing": rng.uniform(-0.015, 0.02),
    "eye_tilt": rng.uniform(-0.1, 0.16),
    "brow_thickness": rng.uniform(0.75, 1.4),
    "brow_arch": rng.uniform(0.3, 1.3),
    "nose_size": rng.uniform(0.8, 1.25),
    "mouth_size": rng.uniform(0.92, 1.12),
    "lip_fullness": rng.uniform(0.8, 1.25),
    "fringe": FRINGES[rng.integers(len(FRINGES))],
    "hairline": rng.uniform(-0.04, 0.06),
    "hair_volume": rng.uniform(0.0, 0.09),
    "hair_length": rng.uniform(0.0, 1.0),
    "tuft": rng.choice([0.0, 0.0, 1.0]) * rng.uniform(0.5, 1.0),
    "blush": rng.uniform(0.0, 0.6),
    "pattern": PATTERNS[rng.integers(len(PATTERNS))],
  }
  hidden = {name: int(rng.integers(count)) for name, count in HIDDEN.items()}
  return Character(f"{style}-{seed:07d}", style, **fields, **hidden)


def attributes(c: Character) -> dict[str, int]:
  """The hidden attributes and the style (index in ALL_STYLES): ground truth for a probe."""
  return {name: getattr(c, name) for name in HIDDEN} | {"style": ALL_STYLES.index(c.style)}


def visible_attributes(pose: np.ndarray) -> dict[str, np.ndarray]:
  """Frames of pose [T, 14] in which each hidden attribute shows on a character with it: bool [T].

  The renderer keeps every one of them away from a neutral, frontal picture with a closed mouth.
  """
  field = {name: pose[:, i] for name, i in POSE_INDEX.items()}
  yaw = np.abs((field["yaw"] + np.pi) % (2 * np.pi) - np.pi)
  signed_yaw = (field["yaw"] + np.pi) % (2 * np.pi) - np.pi
  face = yaw < 0.7
  teeth = face & ((field["mouth_open"] > 0.3) | (field["smile"] > 0.75))
  broad = field["mouth_width"] > -0.4
  return {
    "tooth_colour": teeth,
    "tooth_gap": teeth,
    "gold_tooth": teeth & broad,
    "forehead_wrinkles": face & (field["brow"] > 0.6),
    "nose_wrinkles": face & (field["nose_wrinkle"] > 0.5),
    "ear_ring": (yaw > 0.75) & (yaw < 2.2),
    "hair_bun": yaw > 1.1,
    "birthmark": (signed_yaw < -0.75) & (signed_yaw > -2.0),
  }


# How a style looks: light (cel .. rim), line (ink ..), paper and clay, then its proportions.
_LOOKS = {
  "photographic": {"subsurface": 1.0, "specular": 0.22, "rim": 0.25, "vignette": 1.0},
  "anime": {
    "cel": 1.0,
    "ink": 0.9,
    "ink_width": 0.03,
    "saturation": 1.25,
    "bands": 1.0,
    "eye_wide": 1.08,
    "eye_tall": 1.6,
    "iris": 1.42,
    "lash": 1.6,
    "highlight": 1.25,
    "brow": 0.7,
    "lip": 0.65,
    "nose": 0.5,
    "jaw": 0.14,
    "spikes": 1.0,
  },
  "game": {
    "specular": 0.7,
    "rim": 0.8,
    "subsurface": 0.25,
    "saturation": 1.12,
    "glow": 1.0,
    "eye_wide": 1.05,
    "eye_tall": 1.15,
    "iris": 1.1,
  },
  "sketch": {
    "cel": 0.3,
    "ink": 0.85,
    "ink_width": 0.034,
    "saturation": 0.5,
    "paper": 1.0,
    "lash": 1.15,
    "specular": 0.0,
  },
  "clay": {
    "clay": 1.0,
    "specular": 0.06,
    "rim": 0.1,
    "saturation": 0.9,
    "eye_wide": 0.95,
    "eye_tall": 1.1,
    "nose": 1.3,
    "brow": 1.25,
    "lip": 1.2,
    "ink": 0.5,
    "ink_width": 0.05,
  },
}
_LOOK_DEFAULTS = {
  "cel": 0.0,
  "subsurface": 0.0,
  "specular": 0.1,
  "rim": 0.0,
  "saturation": 1.0,
  "ink": 0.0,
  "ink_width": 0.02,
  "paper": 0.0,
  "clay": 0.0,
  "vignette": 0.0,
  "bands": 0.0,
  "glow": 0.0,
  "eye_wide": 1.0,
  "eye_tall": 1.0,
  "iris": 1.0,
  "lash": 1.0,
  "highlight": 1.0,
  "brow": 1.0,
  "lip": 1.0,
  "nose": 1.0,
  "jaw": 0.0,
  "spikes": 0.0,
}
_COLOURS = ("skin", "hair", "eye", "lips", "clothes", "accent", "background")
_SIZES = (
  "face_width",
  "face_height",
  "jaw_taper",
  "cheeks",
  "eye_size",
  "eye_spacing",
  "eye_tilt",
  "brow_thickness",
  "brow_arch",
  "nose_size",
  "mouth_size",
  "lip_fullness",
  "hairline",
  "hair_volume",
  "hair_length",
  "tuft",
  "blush",
)
_FRINGE_SHAPES = ("fringe_slope", "fringe_peak", "fringe_scallop")
_PATTERN_FLAGS = PATTERNS[1:]
PARAM_FIELDS = (
  *(f"{name}_{channel}" for name in _COLOURS for channel in "rgb"),
  *_SIZES,
  *_FRINGE_SHAPES,
  *_PATTERN_FLAGS,
  *HIDDEN,
  *(f"look_{name}" for name in _LOOK_DEFAULTS),
)


def character_params(c: Character) -> np.ndarray:
  """The renderer's view of a character: float32 [P], one value for each of PARAM_FIELDS."""
  values = {
    f"{name}_{channel}": value
    for name in _COLOURS
    for channel, value in zip("rgb", getattr(c, name), strict=True)
  }
  values |= {name: getattr(c, name) for name in (*_SIZES, *HIDDEN)}
  values["fringe_slope"] = {"swept left": -1.0, "swept right": 1.0}.get(c.fringe, 0.0)
  values["fringe_peak"] = float(c.fringe == "peaked")
  values["fringe_scallop"] = float(c.fringe == "scalloped")
  values |= {name: float(c.pattern == name) for name in _PATTERN_FLAGS}
  look = _LOOK_DEFAULTS | _LOOKS[c.style]
  values |= {f"look_{name}": value for name, value in look.items()}
  return np.array([values[name] for name in PARAM_FIELDS], np.float32)


def _rgb(code: str) -> Colour:
  return tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))


def _draw(rng: np.random.Generator, palette: tuple[str, ...], jitter: float) -> Colour:
  base = np.array(_rgb(palette[rng.integers(len(palette))]))
  shifted = base + rng.uniform(-jitter, jitter) + rng.uniform(-jitter, jitter, 3) / 2
  return tuple(float(v) for v in np.clip(shifted, 0.03, 0.97))


def _mix(a: Colour, b: Colour, t: float) -> Colour:
  return tuple((1 - t) * x + t * y for x, y in zip(a, b, strict=True))
