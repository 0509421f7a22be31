"""Attention by parts: both kernels, forward and gradient, against one dense softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models import flash
from lpm_jax.models.attention import attend
from lpm_jax.models.flash import How, attend_parts


def causal(query: jax.Array, key: jax.Array) -> jax.Array:
  return key // 100 <= query // 100


def causal_behind(query: jax.Array, key: jax.Array) -> jax.Array:
  """`causal`, for keys whose first 128 are in another part."""
  return causal(query, key + 128)


@pytest.mark.parametrize("kernel", ["dense", "splash"])
@pytest.mark.parametrize(("queries", "keys"), [(256, 384), (300, 700)])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_equal_the_whole(kernel: str, queries: int, keys: int, masked: bool):
  """Lengths that are, and are not, whole blocks; two parts of the keys."""
  draw = jax.random.split(jax.random.key(0), 5)
  query = jax.random.normal(draw[0], (1, 2, queries, 128)) * 128**-0.5
  key, value = (jax.random.normal(k, (1, 2, keys, 128)) for k in draw[1:3])
  seen = jax.random.bernoulli(draw[3], 0.6, (1, keys)).at[:, 0].set(True) if masked else None
  weight = jax.random.normal(draw[4], query.shape)

  def whole(query, key, value):
    mask = None
    if masked:
      index = jnp.arange(queries)[:, None], jnp.arange(keys)[None]
      mask = seen[:, None, None] & causal(*index)
    sequences = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(attend(*sequences, mask=mask, scale=1.0), 1, 2)

  def parts(query, key, value):
    cut = slice(0, 128), slice(128, None)
    how = How(kernel, "v5p", (causal, causal_behind) if masked else (None, None))
    there = tuple(seen[:, c] for c in cut) if masked else (None, None)
    return attend_parts(how, query, *(tuple(x[:, :, c] for c in cut) for x in (key, value)), there)

  def gradient(of):
    loss = lambda *inputs: (of(*inputs) * weight).sum()  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)

  for found, expected in zip(
    jax.tree.leaves(gradient(parts)), jax.tree.leaves(gradient(whole)), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_a_part_without_any_key_there_changes_nothing():
  draw = jax.random.split(jax.random.key(0), 3)
  query, key, value = (jax.random.normal(k, (1, 1, 8, 16)) for k in draw)
  nobody = jnp.zeros((1, 8), bool)
  run = functools.partial(attend_parts, How("dense", "v5p", (None, None)))

  def loss(value, other):
    return run(query, (key, 3 * key), (value, other), (None, nobody)).sum()

  alone = attend_parts(How("dense", "v5p", (None,)), query, (key,), (value,), (None,))
  np.testing.assert_allclose(loss(value, 1e3 * value), alone.sum(), rtol=1e-6)
  np.testing.assert_array_equal(jax.grad(loss, argnums=1)(value, value), 0.0)


@pytest.mark.parametrize("chip", sorted(flash.BLOCKS))
@pytest.mark.parametrize("grid", [1560, 3600])
def test_blocks_of_a_clip_need_no_padding(chip: str, grid: int):
  """Video of 32 latents at 480p and 720p: keys in whole blocks, whose products are whole too."""
  keys = jax.ShapeDtypeStruct((40, 32 * grid, 128), jnp.bfloat16)
  for largest in flash.BLOCKS[chip]:
    rows, columns, compute = flash._fitted(keys, keys, largest)
    assert keys.shape[1] % columns == 0 and columns % compute == 0 and compute % flash.LANES == 0
    assert rows <= largest[0] and columns <= largest[1] and 2 * columns >= largest[1]
    assert compute >= 256
