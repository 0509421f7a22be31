"""A few real clips and what an instrument without error would read in them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from data_pipelines.clip import Clip
from data_pipelines.puppets.builder import puppet_clip
from data_pipelines.puppets.character import HIDDEN
from data_pipelines.puppets.scene import SCENE_KINDS
from lpm_jax.evaluation.probe import Reading
from lpm_jax.evaluation.scoring import Take


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
  """One held-out clip of each kind, one character each."""
  return [puppet_clip(i, "heldout", kind) for i, kind in enumerate(SCENE_KINDS)]


def _perfect(clip: Clip) -> Take:
  """The render, read without error."""
  pose = clip.truth["pose"]
  attributes = {name: np.full(len(pose), clip.truth["attributes"][name], float) for name in HIDDEN}
  return Take(clip, clip.video, Reading(pose, attributes, np.zeros((len(pose), 5))))


def _still(clip: Clip) -> Take:
  """The first frame held, read without error."""
  perfect = _perfect(clip)
  pose = np.repeat(perfect.reading.pose[:1], len(clip.video), axis=0)
  still = np.repeat(clip.video[:1], len(clip.video), axis=0)
  unseen = {name: np.zeros(len(pose)) for name in HIDDEN}
  return dataclasses.replace(
    perfect, video=still, reading=Reading(pose, unseen, perfect.reading.style)
  )


@pytest.fixture(scope="session")
def perfect_take() -> Callable[[Clip], Take]:
  return _perfect


@pytest.fixture(scope="session")
def still_take() -> Callable[[Clip], Take]:
  return _still
