import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.models import rotary


def test_a_head_of_128_splits_as_in_wan():
  assert rotary.axis_widths(128) == (44, 42, 42)
  assert rotary.axis_widths(32) == (12, 10, 10)


def test_rotation_multiplies_adjacent_pairs_as_complex_numbers():
  x = np.random.default_rng(0).normal(size=(2, 3, 2, 6)).astype(np.float32)
  position = np.array([0, 1, 500])
  found = np.asarray(rotary.rotate(jnp.asarray(x), rotary.turn(rotary.angles(position, 6)[None])))
  frequency = 10_000.0 ** (-np.arange(3) / 3)
  turn = np.exp(1j * position[:, None] * frequency)[None, :, None]
  expected = (x[..., ::2] + 1j * x[..., 1::2]) * turn
  np.testing.assert_allclose(found[..., ::2], expected.real, atol=1e-4)
  np.testing.assert_allclose(found[..., 1::2], expected.imag, atol=1e-4)


def test_products_depend_on_relative_position_only():
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def product(at_query: int, at_key: int) -> jax.Array:
    turned = rotary.rotate(query, rotary.turn(rotary.angles(jnp.array([[at_query]]), 8)))
    return (turned * rotary.rotate(key, rotary.turn(rotary.angles(jnp.array([[at_key]]), 8)))).sum()

  np.testing.assert_allclose(product(3, 5), product(1003, 1005), atol=1e-3)
  assert abs(product(3, 5) - product(3, 6)) > 1e-3


def test_grid_angles_are_those_of_time_row_and_column():
  time = jnp.array([[0, 7]])
  found = np.asarray(rotary.grid_angles(time, 2, 3, 32)).reshape(2, 2, 3, 16)
  for g, r, c in np.ndindex(2, 2, 3):
    parts = [
      rotary.angles(jnp.array(position), width)
      for position, width in zip((int(time[0, g]), r, c), (12, 10, 10), strict=True)
    ]
    np.testing.assert_allclose(found[g, r, c], np.concatenate(parts), rtol=1e-6)
