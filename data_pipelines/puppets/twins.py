"""Twins: one idle scene, played by two characters who differ in every hidden attribute.

They share the main picture, so what the scene reveals can be told from the references alone: a
model that learns from both cannot guess it from the face, nor know it by heart.
"""

import dataclasses

import numpy as np

from data_pipelines.clip import TWIN, Clip
from data_pipelines.puppets import references
from data_pipelines.puppets.behaviour import ACTIONS
from data_pipelines.puppets.builder import TRAIN_CHARACTERS, assemble
from data_pipelines.puppets.character import (
  HIDDEN,
  STYLES,
  TRAIN_SEEDS,
  Character,
  sample_character,
  visible_attributes,
)
from data_pipelines.puppets.pose import make_pose
from data_pipelines.puppets.scene import compose_scene

KIND = "twins"
REVEALING = tuple(
  name
  for name, action in ACTIONS.items()
  if any(seen.any() for seen in visible_attributes(make_pose(1, **action.pose)).values())
)


def flipped(character: Character) -> Character:
  """The twin: the same looks, every hidden attribute the other way."""
  return dataclasses.replace(
    character,
    character_id=f"{character.character_id}-flipped",
    **{name: 1 - getattr(character, name) for name in HIDDEN},
  )


def twin_clip(index: int, split: str, frames: int = 73, *, seed: int = 0, size: int = 64) -> Clip:
  """Clip `index` of a set of twins: clips 2i and 2i + 1 are a pair.

  Two actions, one of them REVEALING, and every reference. The characters are none of those of other
  training clips; splits but "train" have no twins. Raises ValueError for another split.
  """
  if split != "train":
    raise ValueError(f"twins: found split {split!r}, expected 'train'")
  pair = index // 2
  rng = np.random.default_rng((seed, pair, 0x7718))
  first = str(rng.choice(REVEALING))
  second = str(rng.choice([name for name in ACTIONS if name != first]))
  actions = (first, second) if rng.random() < 0.5 else (second, first)
  scene = compose_scene(int(rng.integers(2**31)), "idle", split, frames, actions=actions)
  draw = TRAIN_CHARACTERS + (seed * 1_000 + pair) % (len(TRAIN_SEEDS) - TRAIN_CHARACTERS)
  character = sample_character(TRAIN_SEEDS[draw], style=STYLES[pair % len(STYLES)])
  if index % 2:
    character = flipped(character)
  name = f"{KIND}-{seed}-{pair:06d}{TWIN * (index % 2)}"
  return assemble(name, scene, character, references.ALL_REFERENCES, rng, size)
