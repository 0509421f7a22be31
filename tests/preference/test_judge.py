"""The judge by hand-made numbers: better in one dimension at least, worse in none."""

import json
import pathlib

import pytest

from lpm_jax.preference import judge
from lpm_jax.preference.judge import Judgement, Pair

MARGINS = {"lips": 0.1, "rest": 0.02, "nods": 0.5}


@pytest.mark.parametrize(
  ("first", "second", "expected"),
  [
    # better in one, the same in another
    (dict(lips=0.9, rest=0.05), dict(lips=0.6, rest=0.06), (0, 1, ("lips",), 3.0)),
    # the other way round; a smaller opening at rest is better
    (dict(lips=0.9, rest=0.09), dict(lips=0.85, rest=0.05), (1, 0, ("rest",), 2.0)),
    # better in two
    (dict(lips=0.9, nods=1.0), dict(lips=0.7, nods=0.0), (0, 1, ("lips", "nods"), 4.0)),
    # better in one and worse in another: nobody wins
    (dict(lips=0.9, rest=0.09), dict(lips=0.6, rest=0.05), None),
    # within the margins
    (dict(lips=0.9, rest=0.05), dict(lips=0.82, rest=0.06), None),
    # what one of them does not decide says nothing
    (dict(lips=0.9, nods=None), dict(lips=0.6, nods=1.0), (0, 1, ("lips",), 3.0)),
    (dict(lips=None), dict(lips=0.6), None),
    # a dimension without margin is not looked at
    (dict(lips=0.9, gaze=0.0), dict(lips=0.6, gaze=1.0), (0, 1, ("lips",), 3.0)),
  ],
)
def test_the_winner_is_better_somewhere_and_worse_nowhere(first, second, expected):
  found = judge.measured_pairs([first, second], MARGINS)
  if expected is None:
    assert found == []
  else:
    ((winner, loser, better, advantage),) = [
      (pair.winner, pair.loser, pair.better, pair.advantage) for pair in found
    ]
    assert (winner, loser, better) == expected[:3]
    assert advantage == pytest.approx(expected[3])


def test_all_pairs_of_a_clip_come_with_the_clearest_first():
  measured = [dict(lips=0.5), dict(lips=0.9), dict(lips=0.7), dict(lips=0.72)]
  found = judge.measured_pairs(measured, MARGINS)
  assert [(pair.winner, pair.loser) for pair in found] == [(1, 0), (3, 0), (1, 2), (2, 0), (1, 3)]


def test_answers_of_several_people_and_sides_are_averaged():
  said = [
    Judgement("a", 0, 2, {"lips": 1, "gaze": 0}),
    Judgement("a", 2, 0, {"lips": 0, "gaze": 0}),  # the other side
    Judgement("b", 3, 1, {"lips": 1}),
    Judgement("b", 1, 3, {"lips": 1}),  # they disagree
    Judgement("c", 1, 0, {"lips": 1, "nods": -1}),
    Judgement("d", 1, 0, {"lips": 1, "nods": 0}),
  ]
  assert judge.judged_pairs(said) == {
    "a": [Pair(0, 2, ("lips",), 0.5)],
    "b": [],
    "c": [],
    "d": [Pair(1, 0, ("lips",), 1.0)],
  }


def saved(folder: pathlib.Path, **changes) -> pathlib.Path:
  entry = dict(clip_id="a", left=2, right=0, answers={"lips": "good", "gaze": "bad"})
  content = {"format": judge.FORMAT, "candidates": "abc", "judgements": [entry]}
  entry |= changes.pop("entry", {})
  (folder / "said.json").write_text(json.dumps(content | changes))
  return folder / "said.json"


def test_good_means_that_the_left_video_is_better(tmp_path: pathlib.Path):
  (one,) = judge.read_judgements(saved(tmp_path), "abc")
  assert one == Judgement("a", 2, 0, {"lips": 1, "gaze": -1})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(format="other"), "format: found 'other'"),
    (dict(candidates="xyz"), "candidates: found those of xyz, expected those of abc"),
    (dict(judgements=3), "not a file of judgements|not iterable"),
    (dict(entry=dict(left=0)), r"judgements\[0\]: left, right: found 0, 0"),
    (dict(entry=dict(left="2")), r"judgements\[0\]: left, right: found '2', 0"),
    (dict(entry=dict(answers={"lips": "best"})), "answers: found lips: 'best'"),
    (dict(entry=dict(answers={"hair": "good"})), "answers: found hair: 'good'"),
    (dict(entry=dict(answers=None)), "expected clip_id, left, right and answers"),
  ],
)
def test_a_wrong_file_of_judgements_is_named(tmp_path: pathlib.Path, changes: dict, message: str):
  path = saved(tmp_path, **changes)
  with pytest.raises(ValueError, match=message) as error:
    judge.read_judgements(path, "abc")
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  ("margins", "message"),
  [
    ({}, "margins: found none"),
    ({"hair": 1.0}, r"margins: found \['hair'\], expected some of"),
    ({"lips": 0.0}, "margins.lips: found 0.0, expected a positive number"),
  ],
)
def test_margins_that_make_no_sense_are_named(margins: dict, message: str):
  with pytest.raises(ValueError, match=message):
    judge.measured_pairs([{}, {}], margins)
