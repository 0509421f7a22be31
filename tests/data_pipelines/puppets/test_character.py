"""Characters: drawn from a seed, attributes independent, hidden ones announced by the pose that
shows them."""

import numpy as np
import pytest

from data_pipelines.puppets.character import (
  ALL_STYLES,
  FIRST_HELDOUT_SEED,
  HELD_OUT_STYLE,
  HIDDEN,
  PARAM_FIELDS,
  STYLES,
  TRAIN_SEEDS,
  attributes,
  character_params,
  sample_character,
  visible_attributes,
)
from data_pipelines.puppets.pose import make_pose


def test_a_seed_gives_one_character_and_another_seed_another():
  assert sample_character(7) == sample_character(7)
  assert sample_character(7) != sample_character(8)


def test_a_given_style_changes_the_style_alone():
  drawn = vars(sample_character(5, style="anime"))
  other = vars(sample_character(5, style=HELD_OUT_STYLE))
  changed = {name for name in drawn if drawn[name] != other[name]}
  assert changed == {"style", "character_id"}


def test_unknown_style_is_named_in_the_error():
  with pytest.raises(ValueError, match="oil"):
    sample_character(0, style="oil")


def test_held_out_seeds_and_style_are_not_drawn_for_training():
  assert FIRST_HELDOUT_SEED not in TRAIN_SEEDS and TRAIN_SEEDS.stop <= FIRST_HELDOUT_SEED
  assert {sample_character(seed).style for seed in range(200)} == set(STYLES)


def test_params_are_finite_float32_in_field_order():
  c = sample_character(3)
  params = character_params(c)
  assert params.dtype == np.float32 and params.shape == (len(PARAM_FIELDS),)
  assert np.isfinite(params).all()
  assert params[PARAM_FIELDS.index("gold_tooth")] == c.gold_tooth
  assert params[PARAM_FIELDS.index("hair_g")] == np.float32(c.hair[1])


def test_hidden_attributes_are_balanced_and_independent():
  characters = [attributes(sample_character(i)) for i in range(600)]
  table = np.array([[c[name] for name in HIDDEN] for c in characters])
  assert np.abs(table.mean(0) - 0.5).max() < 0.07
  correlation = np.corrcoef(table.T) - np.eye(len(HIDDEN))
  assert np.abs(correlation).max() < 0.16


def test_hidden_attributes_do_not_follow_from_visible_ones():
  characters = [sample_character(i) for i in range(600)]
  hidden = np.array([[attributes(c)[k] for k in HIDDEN] for c in characters])
  visible = np.array(
    [character_params(c)[: PARAM_FIELDS.index("tooth_colour")] for c in characters]
  )
  style = np.eye(len(ALL_STYLES))[[attributes(c)["style"] for c in characters]][:, : len(STYLES)]
  columns = np.concatenate([visible, style], axis=1)
  columns = (columns - columns.mean(0)) / (columns.std(0) + 1e-6)
  centred = (hidden - hidden.mean(0)) / hidden.std(0)
  assert np.abs(columns.T @ centred / len(characters)).max() < 0.18


def test_nothing_hidden_shows_in_the_main_picture():
  assert not any(v.any() for v in visible_attributes(make_pose(3)).values())


@pytest.mark.parametrize(
  "name, fields",
  [
    ("tooth_colour", {"mouth_open": 0.5}),
    ("tooth_gap", {"smile": 1.0}),
    ("gold_tooth", {"mouth_open": 0.6}),
    ("forehead_wrinkles", {"brow": 1.0}),
    ("nose_wrinkles", {"nose_wrinkle": 1.0}),
    ("ear_ring", {"yaw": 1.4}),
    ("hair_bun", {"yaw": -np.pi}),
    ("birthmark", {"yaw": -1.4}),
  ],
)
def test_each_hidden_attribute_has_a_pose_that_shows_it(name, fields):
  assert visible_attributes(make_pose(2, **fields))[name].all()
