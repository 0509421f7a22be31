"""Who wins: from measurements, or from what people said, to pairs of a winner and a loser.

A candidate wins over another when it is better in at least one dimension and worse in none (LPM
1.0). What differs by no more than a margin is the same; what a clip does not decide says nothing.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.clip import Measurements
from lpm_jax.preference.dimensions import DIMENSIONS

Verdicts = Mapping[str, float]  # by dimension: positive, the first is better; negative, the second
ANSWERS = {"good": 1, "same": 0, "bad": -1}  # of the left video, compared with the right one
FORMAT = "lpm judgements 1"


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two candidates of a clip by their places.

  Attributes:
    better: dimensions in which the winner is better, in the order of DIMENSIONS.
    advantage: how much better, summed over these: differences in margins, or the mean of answers.
  """

  winner: int
  loser: int
  better: tuple[str, ...]
  advantage: float


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What one person said of two candidates of a clip; `verdicts` are the first one's."""

  clip_id: str
  first: int
  second: int
  verdicts: Verdicts


def compare(
  first: Measurements, second: Measurements, margins: Mapping[str, float]
) -> dict[str, float]:
  """How much better the first is, in margins; 0 within a margin. Undecided dimensions are left out.

  Raises ValueError for a margin of no dimension, and for one that is not positive.
  """
  check_margins(margins)
  verdicts = {}
  for name, margin in margins.items():
    one, other = first.get(name), second.get(name)
    if one is not None and other is not None:
      apart = DIMENSIONS[name].sign * (one - other) / margin
      verdicts[name] = apart if abs(apart) > 1.0 else 0.0
  return verdicts


def check_margins(margins: Mapping[str, float]):
  """Raises ValueError for margins that make no sense, or none at all."""
  unknown = sorted(set(margins) - set(DIMENSIONS))
  if unknown or not margins:
    raise ValueError(f"margins: found {unknown or 'none'}, expected some of {list(DIMENSIONS)}")
  for name, margin in margins.items():
    if not margin > 0.0:
      raise ValueError(f"margins.{name}: found {margin}, expected a positive number")


def pair_of(first: int, second: int, verdicts: Verdicts) -> Pair | None:
  """The pair in which one of two dominates the other; None where neither does."""
  signs = {verdict > 0 for verdict in verdicts.values() if verdict}
  if len(signs) != 1:
    return None
  better = tuple(name for name in DIMENSIONS if verdicts.get(name))
  winner, loser = (first, second) if signs == {True} else (second, first)
  return Pair(winner, loser, better, sum(abs(verdicts[name]) for name in better))


def measured_pairs(measured: Sequence[Measurements], margins: Mapping[str, float]) -> list[Pair]:
  """All pairs among the measured candidates of a clip, the clearest first."""
  places = itertools.combinations(range(len(measured)), 2)
  return _sorted(pair_of(i, j, compare(measured[i], measured[j], margins)) for i, j in places)


def judged_pairs(judgements: Iterable[Judgement]) -> dict[str, list[Pair]]:
  """Pairs of each clip from what people said, the clearest first.

  In each dimension the mean of all answers on two candidates decides; a draw is the same.
  """
  answers: dict[tuple[str, int, int], dict[str, list[float]]] = {}
  for said in judgements:
    turn = 1 if said.first < said.second else -1
    places = tuple(sorted((said.first, said.second)))
    of_two = answers.setdefault((said.clip_id, *places), {})
    for name, verdict in said.verdicts.items():
      of_two.setdefault(name, []).append(turn * verdict)
  found: dict[str, list[Pair | None]] = {}
  for (clip_id, i, j), of_two in answers.items():
    means = {name: sum(each) / len(each) for name, each in of_two.items()}
    found.setdefault(clip_id, []).append(pair_of(i, j, means))
  return {clip_id: _sorted(pairs) for clip_id, pairs in found.items()}


def _sorted(pairs: Iterable[Pair | None]) -> list[Pair]:
  return sorted(filter(None, pairs), key=lambda pair: (-pair.advantage, pair.winner, pair.loser))


def read_judgements(path: str | os.PathLike, made: str) -> list[Judgement]:
  """Judgements from the file that the page saves.

  Args:
    path: the JSON file.
    made: hash of the folder of candidates that was shown.

  Raises ValueError naming the file and what is wrong in it, or that other candidates were shown.
  """
  path = pathlib.Path(path)
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    form, shown = content["format"], content["candidates"]
    entries = list(content["judgements"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: not a file of judgements: {error!r}") from error
  if form != FORMAT:
    raise ValueError(f"{path}: format: found {form!r}, expected {FORMAT!r}")
  if shown != made:
    raise ValueError(f"{path}: candidates: found those of {shown}, expected those of {made}")
  return [_judgement(entry, f"{path}: judgements[{i}]") for i, entry in enumerate(entries)]


def _judgement(entry: dict, where: str) -> Judgement:
  try:
    clip_id, left, right = entry["clip_id"], entry["left"], entry["right"]
    answers = dict(entry["answers"])
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{where}: expected clip_id, left, right and answers: {error!r}") from error
  if not all(type(place) is int and place >= 0 for place in (left, right)) or left == right:
    raise ValueError(f"{where}: left, right: found {left!r}, {right!r}, expected two places")
  for name, answer in answers.items():
    if name not in DIMENSIONS or answer not in ANSWERS:
      raise ValueError(
        f"{where}: answers: found {name}: {answer!r}, expected one of {list(ANSWERS)} for some of "
        f"{list(DIMENSIONS)}"
      )
  verdicts = {name: ANSWERS[answer] for name, answer in answers.items()}
  return Judgement(clip_id, left, right, verdicts)
