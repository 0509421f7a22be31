import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.diffusion.continuation import (
  blend_weights,
  continue_video,
  covered,
  join_window,
  plan_windows,
)


def _truth(total):
  """A long video [1, total, 1, 1, 1] whose latent k holds the number k."""
  return jnp.arange(total, dtype=jnp.float32).reshape(1, total, 1, 1, 1)


def _continued(sample, first, windows, key):
  return jnp.concatenate(list(continue_video(sample, first, windows, key)), axis=1)


def _perfect_sampler(window, known, key):
  made = _truth(1000)[:, window.start : window.stop]
  np.testing.assert_array_equal(known, made[:, : window.known])
  return made


@pytest.mark.parametrize("overlap,blend", [(1, 0), (3, 0), (2, 3)])
@pytest.mark.parametrize("total", [2, 8, 9, 13, 14, 40])
def test_windows_tile_a_video_of_any_length(total, overlap, blend):
  windows = plan_windows(total, 8, overlap, blend)
  made = np.zeros(covered(windows), int)
  made[0] = 1  # the picture
  for window in windows:
    made[window.fresh : window.stop] += 1
    assert window.fresh < window.stop
  assert (made == 1).all()
  assert total <= covered(windows) < total + len(windows)
  assert len({window.length for window in windows}) == 1
  assert windows[-1].fresh < total, "the last window must be needed"


@pytest.mark.parametrize("total", [5, 8, 9, 30])
def test_a_perfect_sampler_gives_the_true_video(total):
  windows = plan_windows(total, 8, 2, 2)
  video = _continued(_perfect_sampler, _truth(1), windows, jax.random.key(0))
  np.testing.assert_allclose(video, _truth(covered(windows)), rtol=1e-6)


def test_one_window_equals_one_shot():
  key = jax.random.key(3)

  def sample(window, known, key):
    noise = jax.random.normal(key, (1, window.length, 2, 2, 4))
    return noise.at[:, : window.known].set(known)

  first = jnp.ones((1, 1, 2, 2, 4))
  windows = plan_windows(6, 8, 3, 2)
  once = sample(windows[0], first, jax.random.fold_in(key, 0))
  np.testing.assert_array_equal(_continued(sample, first, windows, key), once)


def test_each_window_draws_with_a_key_of_its_own_for_each_clip():
  seen = []

  def sample(window, known, key):
    seen.extend(map(tuple, jax.random.key_data(key).tolist()))
    return jnp.zeros((2, window.length, 1, 1, 1))

  keys = jax.random.split(jax.random.key(0), 2)
  _continued(sample, jnp.zeros((2, 1, 1, 1, 1)), plan_windows(20, 8, 3), keys)
  assert len(seen) == len(set(seen)) == 2 * len(plan_windows(20, 8, 3))


def test_known_latents_stay_and_shared_ones_fade_linearly():
  window = plan_windows(11, 8, 2, 3)[1]
  assert (window.start, window.known, window.fresh) == (3, 2, 8)
  made = join_window(jnp.zeros((1, 5, 1, 1, 1)), jnp.ones((1, 8, 1, 1, 1)), window)
  np.testing.assert_allclose(made.ravel(), [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_a_window_starts_from_what_the_windows_before_have_settled():
  def sample(window, known, key):
    seen.append((window, known))
    made = jax.random.normal(key, (1, window.length, 1, 1, 1))
    return made.at[:, : window.known].set(known)

  seen = []
  windows = plan_windows(30, 8, 2, 1)
  video = _continued(sample, jnp.zeros((1, 1, 1, 1, 1)), windows, jax.random.key(0))
  assert len(seen) == len(windows) > 3
  for window, known in seen:
    np.testing.assert_array_equal(known, video[:, window.start : window.start + window.known])


def test_blend_weights_of_both_windows_sum_to_one():
  for blend in range(6):
    later = np.asarray(blend_weights(blend))
    np.testing.assert_allclose(later + later[::-1], 1.0, rtol=1e-6)
    assert (later > 0).all() and (later < 1).all() and (np.diff(later) > 0).all()


@pytest.mark.parametrize("arguments", [(0, 8, 2), (20, 8, 0), (20, 8, 8), (20, 8, 4, 4)])
def test_impossible_plans_are_refused(arguments):
  with pytest.raises(ValueError, match="found"):
    plan_windows(*arguments)
