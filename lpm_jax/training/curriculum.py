"""The stages of Base training as config entries: clips, references, learning rates."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.clip import STATES

KINDS = ("speak", "listen", "idle", "dialogue")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One entry of `config.stages`.

  Args:
    name: for messages.
    steps: how long it lasts; the last stage lasts until the end.
    mixture: weight of each clip kind (see `clip_kind`); kinds not named are left out.
    global_reference: probability that a clip carries its global reference.
    extra_references: probability that it also carries some of its body views and expressions.
    filled: probability that these take every slot that is left.
    twins: short windows of twins (`data_pipelines/puppets/twins.py`), no other clips.
    latent_frames: of the window; None is `config.data.latent_frames`.
    slots: references per example; None is `config.data.slots`.
    extension: probability that it starts 2 to 5 latents into the clip, with 2 to 5 clean latents.
    random_start: probability that a window without extension starts anywhere in the clip.
    learning_rates: (path regex, factor) pairs; the first regex found in a parameter's path counts.
  """

  name: str
  steps: int
  mixture: Mapping[str, float]
  global_reference: float = 1.0
  extra_references: float = 0.0
  filled: float = 0.0
  twins: bool = False
  latent_frames: int | None = None
  slots: int | None = None
  extension: float = 0.0
  random_start: float = 0.0
  learning_rates: Sequence[tuple[str, float]] = ()

  def __post_init__(self):
    unknown = set(self.mixture) - set(KINDS)
    if unknown:
      raise ValueError(f"stage {self.name!r}: mixture: found {sorted(unknown)}, expected {KINDS}")
    for field in ("global_reference", "extra_references", "filled", "extension", "random_start"):
      if not 0.0 <= getattr(self, field) <= 1.0:
        raise ValueError(
          f"stage {self.name!r}: {field}: found {getattr(self, field)}, expected a probability"
        )


def read_stages(entries: Sequence[Mapping]) -> tuple[Stage, ...]:
  """Stages from config entries. Raises ValueError naming a stage and a field that is not known."""
  known = {field.name for field in dataclasses.fields(Stage)}
  stages = []
  for entry in entries:
    entry = dict(entry)
    unknown = set(entry) - known
    if unknown:
      raise ValueError(
        f"stage {entry.get('name')!r}: unknown fields {sorted(unknown)}, expected {sorted(known)}"
      )
    stages.append(Stage(**{**entry, "mixture": dict(entry["mixture"])}))
  if not stages:
    raise ValueError("stages: found none, expected at least one")
  return tuple(stages)


def clip_kind(state: np.ndarray) -> str:
  """One of KINDS, from the states of a clip's frames, or those that occur in it.

  A dialogue both speaks and listens.
  """
  speaks = bool((state == STATES.index("speaking")).any())
  listens = bool((state == STATES.index("listening")).any())
  if speaks and listens:
    return "dialogue"
  return "speak" if speaks else "listen" if listens else "idle"
