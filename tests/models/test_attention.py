import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.models.attention import ChunkCausal, GridMask, TeacherForcing, attend, window_mask
from lpm_jax.models.context import _Sees


def make_qkv(queries: int = 5, keys: int = 3) -> tuple[jax.Array, jax.Array, jax.Array]:
  random = [jax.random.key(i) for i in range(3)]
  shapes = [(2, queries, 2, 4), (2, keys, 2, 4), (2, keys, 2, 4)]
  return tuple(jax.random.normal(*pair) for pair in zip(random, shapes, strict=True))


def test_attention_equals_a_loop_over_heads_and_queries():
  query, key, value = make_qkv()
  found = np.asarray(attend(query, key, value))
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  for b, s, k in np.ndindex(2, 5, 2):
    weights = np.exp(key[b, :, k] @ query[b, s, k] / 2.0)
    expected = weights @ value[b, :, k] / weights.sum()
    np.testing.assert_allclose(found[b, s, k], expected, rtol=1e-5, atol=1e-6)


def test_a_masked_key_equals_a_missing_key():
  query, key, value = make_qkv()
  mask = jnp.array([True, False, True])[None, None, None]
  found = attend(query, key, value.at[:, 1].set(1e6), mask=mask)
  kept = attend(query, key[:, ::2], value[:, ::2])
  np.testing.assert_allclose(found, kept, rtol=1e-5, atol=1e-6)


def test_large_logits_stay_finite_in_value_and_gradient():
  query, key, value = make_qkv()
  total = lambda q: attend(1e4 * q, key, value).sum()  # noqa: E731
  assert np.isfinite(total(query))
  assert np.isfinite(jax.grad(total)(query)).all()


def test_bfloat16_keeps_fp32_statistics():
  query, key, value = make_qkv(keys=700)  # a bfloat16 sum of 700 weights would be off by percents
  value = jnp.ones_like(value, dtype=jnp.bfloat16)
  found = attend(1e-3 * query.astype(jnp.bfloat16), key.astype(jnp.bfloat16), value)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), 1.0, atol=0.01)


def test_window_mask_lists_the_tokens_of_the_frames_around():
  found = np.asarray(window_mask(3, 2, before=1, after=0))
  expected = [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
  np.testing.assert_array_equal(found, np.array(expected, bool))


def test_a_block_of_a_mask_is_the_mask_of_its_tokens():
  """Blocks that begin and end within grids, also beyond the last one, where keys are padded."""
  mask = GridMask(TeacherForcing(ChunkCausal(frames=2, sink=1, window=1), frames=9), 18)
  sees = _Sees(mask, query_tokens=3, key_tokens=5)
  for first, last in ((0, 9), (7, 40), (13, 70)):
    for start, stop in ((0, 10), (33, 61), (70, 128)):
      index = np.arange(first, last)[:, None], np.arange(start, stop)[None]
      found = sees.block(slice(first, last), slice(start, stop))
      np.testing.assert_array_equal(found, sees(*index))
