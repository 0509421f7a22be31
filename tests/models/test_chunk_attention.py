"""The chunk kernel, interpreted, against dense attention over joined caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models import chunk_attention
from lpm_jax.models.attention import attend
from lpm_jax.models.chunk_attention import Source, chunk_attend, largest_norm

BLOCKS, GRIDS, TOKENS = 3, (2, 4, 1), 16


def draw_sources(batch: int, heads: int, head: int, block: tuple[int, int]) -> list[Source]:
  made = []
  for i, grids in enumerate(GRIDS):
    shape = (BLOCKS, 2, batch, heads, grids, TOKENS, head)
    key, value = (jax.random.normal(jax.random.key(2 * i + j), shape) for j in range(2))
    norm = largest_norm(key[block].reshape(batch, heads, -1, head))
    made.append(Source(key, value, norm, jnp.asarray(block, jnp.int32)))
  return made


@pytest.mark.parametrize("queries", [40, 6 * 256 + 9])  # one part; a turn of the loop and a rest
@pytest.mark.parametrize("stretched", [1.0, 30.0])  # of the second head: beyond LIMIT
def test_equals_dense_attention_over_joined_caches(queries, stretched, monkeypatch):
  monkeypatch.setattr(chunk_attention, "_MOST_PARTS", 6)  # so that 7 parts are two blocks
  batch, heads, head, block = 2, 2, 8, (2, 1)
  sources = draw_sources(batch, heads, head, block)
  query = jax.random.normal(jax.random.key(9), (batch, heads, queries, head))
  query = query.at[:, 1].multiply(stretched)
  seen = jnp.array([[1, 0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0, 1]], bool)

  joined = [
    jnp.concatenate([getattr(s, name)[block] for s in sources], axis=2).reshape(
      batch, heads, -1, head
    )
    for name in ("key", "value")
  ]
  tokens = [jnp.swapaxes(x, 1, 2) for x in (query, *joined)]
  mask = jnp.repeat(seen, TOKENS, axis=1)[:, None, None]
  expected = jnp.swapaxes(attend(*tokens, mask=mask), 1, 2)
  found = chunk_attend(query, sources, seen, interpret=True)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_bound_that_says_small_of_large_scores_is_not_finite():
  """What the bound is for: without a maximum such scores overflow."""
  sources = [s.replace(norm=0.0 * s.norm) for s in draw_sources(1, 1, 8, (0, 0))]
  query = 300.0 * jax.random.normal(jax.random.key(9), (1, 1, 8, 8))
  seen = jnp.ones((1, sum(GRIDS)), bool)
  assert not np.isfinite(chunk_attend(query, sources, seen, interpret=True)).all()


def test_grids_of_other_than_whole_sublanes_are_refused():
  made = jnp.zeros((1, 1, 1, 1, 1, 12, 8))
  source = Source(made, made, jnp.ones((1, 1)), jnp.zeros(2, jnp.int32))
  with pytest.raises(ValueError, match="12 tokens a grid"):
    chunk_attend(jnp.zeros((1, 1, 8, 8)), [source], jnp.ones((1, 1), bool), interpret=True)
