"""Pictures of puppets: deterministic, moved by every pose field, and hiding what they must hide.

All tests draw at one size, so that the renderer is compiled once.
"""

import dataclasses

import numpy as np
import pytest

from data_pipelines.clip import EXPRESSIONS, VIEWS
from data_pipelines.puppets.character import (
  ALL_STYLES,
  HIDDEN,
  character_params,
  sample_character,
  visible_attributes,
)
from data_pipelines.puppets.pose import POSE_FIELDS, make_pose
from data_pipelines.puppets.render import VIEW_YAW, render, render_reference

SHOWS = {
  "tooth_colour": {"mouth_open": 0.5},
  "tooth_gap": {"mouth_open": 0.5},
  "gold_tooth": {"mouth_open": 0.5},
  "forehead_wrinkles": {"brow": 0.8},
  "nose_wrinkles": {"nose_wrinkle": 0.8},
  "ear_ring": {"yaw": 1.4},
  "hair_bun": {"yaw": 1.4},
  "birthmark": {"yaw": -1.4},
}


def draw(character, **fields) -> np.ndarray:
  return render(character_params(character), make_pose(1, **fields))[0].astype(int)


def with_and_without(name: str, style: str):
  c = sample_character(21, style=style)
  return dataclasses.replace(c, **{name: 1}), dataclasses.replace(c, **{name: 0})


def test_same_input_same_pixels_in_any_chunk():
  params = character_params(sample_character(1))
  pose = make_pose(6, mouth_open=np.linspace(0, 1, 6), yaw=np.linspace(-0.4, 0.4, 6))
  whole = render(params, pose)
  assert whole.dtype == np.uint8 and whole.shape == (6, 64, 64, 3)
  np.testing.assert_array_equal(whole, render(params, pose))
  np.testing.assert_array_equal(whole[3:5], render(params, pose[3:5]))


@pytest.mark.parametrize("field", POSE_FIELDS)
def test_every_pose_field_changes_the_picture(field):
  c = sample_character(2)
  changed = np.abs(draw(c, **{field: 0.8}) - draw(c)).max(-1)
  assert (changed > 20).sum() >= 4


@pytest.mark.parametrize("field", POSE_FIELDS)
def test_a_small_step_in_pose_moves_no_pixel_far(field):
  c = sample_character(2, style="photographic")
  pose = make_pose(4, **{field: 0.5 + 0.002 * np.arange(4)})
  step = np.abs(np.diff(render(character_params(c), pose).astype(int), axis=0))
  assert step.max() < 32


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("style", ALL_STYLES)
def test_hidden_attribute_shows_in_its_pose(name, style):
  fields = SHOWS[name]
  assert visible_attributes(make_pose(1, **fields))[name].all()
  have, lack = with_and_without(name, style)
  changed = np.abs(draw(have, **fields) - draw(lack, **fields)).max(-1)
  assert (changed > 25).sum() >= 4


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_attribute_leaves_main_picture_alone(name):
  have, lack = with_and_without(name, "photographic")
  for fields in ({}, {"yaw": 0.25, "pitch": -0.2, "roll": 0.1, "blink": 1.0}, {"yaw": -0.3}):
    assert not visible_attributes(make_pose(1, **fields))[name].any()
    np.testing.assert_array_equal(draw(have, **fields), draw(lack, **fields))


def test_back_view_shows_no_face():
  c = sample_character(4)
  back = {"yaw": VIEW_YAW["back"]}
  moved = {"smile": 1.0, "brow": 1.0, "blink": 1.0, "gaze_x": 1.0, "nose_wrinkle": 1.0}
  changed = np.abs(draw(c, **back, **moved) - draw(c, **back)).max(-1)
  assert (changed > 12).sum() == 0
  have, lack = with_and_without("tooth_colour", "game")
  np.testing.assert_array_equal(
    draw(have, mouth_open=1.0, **back), draw(lack, mouth_open=1.0, **back)
  )


def test_positive_yaw_turns_the_face_to_image_right():
  c = sample_character(6)

  def column_of_eyes(yaw: float) -> float:
    changed = np.abs(draw(c, yaw=yaw, blink=1.0) - draw(c, yaw=yaw)).sum(-1)
    return (changed * np.arange(64)).sum() / changed.sum()

  assert column_of_eyes(0.6) > column_of_eyes(0.0) + 4 > column_of_eyes(-0.6) + 8


def test_open_mouth_is_large_enough_to_survive_the_codec():
  c = sample_character(9, style="photographic")
  changed = np.abs(draw(c, mouth_open=1.0) - draw(c)).max(-1) > 40
  rows, columns = np.nonzero(changed[34:60])
  assert np.ptp(columns) >= 11 and np.ptp(rows) >= 9


def test_styles_look_different():
  pictures = [draw(sample_character(8, style=style)) for style in ALL_STYLES]
  for i, a in enumerate(pictures):
    for b in pictures[:i]:
      assert np.abs(a - b).mean() > 10


def test_references_follow_kind_label_and_seed():
  params = character_params(sample_character(10))
  cases = [(0, 0), *((1, i) for i in range(len(VIEWS))), *((2, i) for i in range(len(EXPRESSIONS)))]
  pictures = [render_reference(params, kind, label, seed=3) for kind, label in cases]
  assert len({p.tobytes() for p in pictures}) == len(cases)
  np.testing.assert_array_equal(pictures[0], render_reference(params, 0, 0, seed=3))
  assert (pictures[0] != render_reference(params, 0, 0, seed=4)).any()


def test_wrong_shapes_are_named():
  params = character_params(sample_character(0))
  with pytest.raises(ValueError, match="pose"):
    render(params, np.zeros((3, 5), np.float32))
  with pytest.raises(ValueError, match="params"):
    render(params[:-1], make_pose(1))
  with pytest.raises(ValueError, match="kind"):
    render_reference(params, 3, 0, seed=0)
