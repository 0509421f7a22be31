"""The evaluation clips: held-out scenes of every kind, the held-out style, the identity suite."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from data_pipelines.clip import EXPRESSIONS, VIEWS, Clip
from data_pipelines.puppets import references
from data_pipelines.puppets.builder import puppet_character, puppet_clip
from data_pipelines.puppets.character import attributes, character_params
from data_pipelines.puppets.render import render
from data_pipelines.puppets.scene import SCENE_KINDS
from data_pipelines.puppets.twins import flipped

# Between them these two scenes show every hidden attribute for half a second or longer.
REVEALING = (
  ("opens the mouth wide", "raises the brows"),
  ("wrinkles the nose", "turns left"),
)
# References that show all of it between them, few enough for a model trained on six.
TELLING_REFERENCES = (
  (references.GLOBAL, 0),
  (references.BODY_VIEW, VIEWS.index("left")),
  (references.BODY_VIEW, VIEWS.index("right")),
  (references.EXPRESSION, EXPRESSIONS.index("happiness")),
  (references.EXPRESSION, EXPRESSIONS.index("surprise")),
  (references.EXPRESSION, EXPRESSIONS.index("disgust")),
)
# References that show nothing the main picture does not.
PLAIN_REFERENCES = (
  (references.GLOBAL, 0),
  (references.BODY_VIEW, VIEWS.index("front")),
  (references.EXPRESSION, EXPRESSIONS.index("neutral")),
)
IDENTITY_INDEX = 300_000  # identity characters are none of the other suites'


def scene_clips(split: str, clips_per_kind: int, frames: int) -> Iterator[Clip]:
  """`clips_per_kind` clips of every kind of scene, each with a character of its own.

  Styles follow the index, so kinds move on by one after each round: every style plays every kind.
  """
  count = len(SCENE_KINDS)
  for i in range(clips_per_kind * count):
    yield puppet_clip(i, split, SCENE_KINDS[(i + i // count) % count], frames)


def identity_pair(index: int, actions: tuple[str, ...]) -> tuple[Clip, Clip]:
  """One idle scene, played by a held-out character and by its twin with hidden attributes flipped.

  Main picture and scene are the same for both; all references are given. Over the two, each
  attribute is present once, so a system that cannot know scores one half exactly.
  """
  clip = puppet_clip(
    index, "heldout", "idle", actions=actions, emotion="neutral", all_references=True
  )
  name = f"identity-{index}-{actions[0].replace(' ', '-')}"
  clip = dataclasses.replace(clip, clip_id=name)
  other = flipped(puppet_character(index, "heldout"))
  rng = np.random.default_rng([index, 0xF11])
  poses = [
    references.reference_pose(int(kind), int(label), rng)
    for kind, label in zip(clip.reference_kind, clip.reference_label, strict=True)
  ]
  truth = clip.truth["pose"]
  pictures = render(character_params(other), np.concatenate([truth, *poses]))
  return clip, dataclasses.replace(
    clip,
    clip_id=f"{name}-flipped",
    character_id=other.character_id,
    video=pictures[: len(truth)],
    references=pictures[len(truth) :],
    truth=clip.truth | {"attributes": attributes(other)},
  )


def with_references(clip: Clip, wanted: tuple[tuple[int, int], ...]) -> Clip:
  """The clip with those of its references whose (kind, label) is wanted.

  It keeps its clip_id, from which a generator's noise follows: all choices play on the same seeds.
  """
  pairs = zip(clip.reference_kind.tolist(), clip.reference_label.tolist(), strict=True)
  keep = np.array([pair in wanted for pair in pairs])
  return dataclasses.replace(
    clip,
    references=clip.references[keep],
    reference_kind=clip.reference_kind[keep],
    reference_label=clip.reference_label[keep],
  )


def identity_clips(characters: int) -> Iterator[Clip]:
  """Both REVEALING scenes of each character, each as a pair."""
  for i in range(characters):
    for actions in REVEALING:
      yield from identity_pair(IDENTITY_INDEX + i, actions)


def build_suites(
  *, heldout: int, heldout_style: int, identity: int, frames: int = 73
) -> dict[str, list[Clip]]:
  """All suites by name, drawn with a progress bar.

  Args:
    heldout: clips per kind of scene on held-out characters, voices and sentences.
    heldout_style: clips per kind in the style that training never saw; 0 leaves the suite out.
    identity: characters of the identity suite; 0 leaves it out.
    frames: video frames per clip, 1 + 4k.

  The suites "identity_with" and "identity_without" hold the same scenes in the same order.
  """
  sources = {
    "heldout": (scene_clips("heldout", heldout, frames), heldout * len(SCENE_KINDS)),
    "heldout_style": (
      scene_clips("heldout_style", heldout_style, frames),
      heldout_style * len(SCENE_KINDS),
    ),
    "identity_with": (identity_clips(identity), 2 * len(REVEALING) * identity),
  }
  suites = {
    name: list(tqdm(clips, desc=f"draw {name}", total=count, unit="clip", disable=None))
    for name, (clips, count) in sources.items()
    if count
  }
  if "identity_with" in suites:
    clips = suites.pop("identity_with")
    suites["identity_with"] = [with_references(clip, TELLING_REFERENCES) for clip in clips]
    suites["identity_without"] = [with_references(clip, PLAIN_REFERENCES) for clip in clips]
  return suites
