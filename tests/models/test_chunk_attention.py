"""The chunk kernel, interpreted, against dense attention over joined caches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models import blocks, chunk_attention
from lpm_jax.models.attention import attend
from lpm_jax.models.chunk_attention import Source, chunk_attend, largest_norm
from tests.models.test_transformer import BATCH, TINY, make_inputs, make_model

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


@pytest.mark.parametrize("timesteps", [1, 2])  # one sequence, padded; frames apart
def test_a_chunk_by_the_kernel_equals_a_dense_one(timesteps, monkeypatch):
  interpreted = functools.partial(chunk_attend, interpret=True)
  monkeypatch.setattr(blocks, "chunk_attend", interpreted)
  _, _, conditions = make_inputs(frames=5)  # 2 of the past, picture and chunk
  conditions = conditions.replace(text=jax.random.normal(jax.random.key(3), (BATCH, 8, 5)))
  latents = jax.random.normal(jax.random.key(4), (BATCH, 3, 8, 8, 2))  # 16 tokens a frame
  given = conditions.without_references().replace(references=latents[:, :0])
  tracks = {name: getattr(given, name)[:, 1:] for name in ("speak", "listen")}
  first = {name: track[:, :1] for name, track in tracks.items()}
  made = []
  for attention in ("dense", "chunk"):
    model = make_model(dataclasses.replace(TINY, attention=attention))
    cache = jax.jit(model.remember)(latents[:, :1], given.replace(**first))
    timestep = jnp.full((BATCH, timesteps), 0.6)
    extend = jax.jit(model.extend)
    made.append(extend(latents[:, 1:], timestep, given.replace(**tracks), [cache], jnp.int32(1)))
  (dense, kept), (fused, kept_fused) = made
  np.testing.assert_allclose(fused, dense, atol=2e-5)
  for one, other in zip(jax.tree.leaves(kept_fused), jax.tree.leaves(kept), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)
