"""The chunk kernel, interpreted, against dense attention over joined caches."""

import dataclasses
import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models import blocks, chunk_attention
from lpm_jax.models.attention import attend
from lpm_jax.models.chunk_attention import Source, chunk_attend, largest_norm
from lpm_jax.parallel.layout import in_force
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import tree_shardings
from tests.children import with_devices
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


def next_chunk(attention: str, timesteps: int, layout: dict | None = None) -> list[np.ndarray]:
  """Velocity and cache of a chunk of the whole model, on a mesh `layout` or on one device."""
  _, _, conditions = make_inputs(frames=5)  # 2 of the past, picture and chunk
  conditions = conditions.replace(text=jax.random.normal(jax.random.key(3), (BATCH, 8, 5)))
  latents = jax.random.normal(jax.random.key(4), (BATCH, 3, 8, 8, 2))  # 16 tokens a frame
  given = conditions.without_references().replace(references=latents[:, :0])
  tracks = {name: getattr(given, name)[:, 1:] for name in ("speak", "listen")}
  first = {name: track[:, :1] for name, track in tracks.items()}
  model = make_model(dataclasses.replace(TINY, attention=attention))
  cache = jax.jit(model.remember)(latents[:, :1], given.replace(**first))
  timestep = jnp.full((BATCH, timesteps), 0.6)
  graphdef, state = nnx.split(model)

  @jax.jit
  def extend(state, cache):
    extended = nnx.merge(graphdef, state).extend
    return extended(latents[:, 1:], timestep, given.replace(**tracks), [cache], jnp.int32(1))

  if layout:
    mesh = make_mesh(layout, jax.devices()[: math.prod(layout.values())])
    rules = {"heads": ("tensor", "context"), "mlp": ("tensor", "context")}
    state = jax.device_put(state, tree_shardings(state, mesh, rules))
    with jax.set_mesh(mesh), in_force(stored=rules):
      return [np.asarray(x) for x in jax.tree.leaves(extend(state, cache))]
  return [np.asarray(x) for x in jax.tree.leaves(extend(state, cache))]


def check_chunk(timesteps: int, layout: dict | None = None):
  blocks.chunk_attend = functools.partial(chunk_attend, interpret=True)
  try:
    fused = next_chunk("chunk", timesteps, layout)
  finally:
    blocks.chunk_attend = chunk_attend
  for one, other in zip(fused, next_chunk("dense", timesteps), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("timesteps", [1, 2])  # one sequence, padded; frames apart
def test_a_chunk_by_the_kernel_equals_a_dense_one(timesteps):
  check_chunk(timesteps)


MESHES = """
from tests.models.test_chunk_attention import check_chunk
for layout, timesteps in (({"tensor": 2}, 1), ({"context": 2}, 1), ({"data": 2, "context": 2}, 2)):
  check_chunk(timesteps, layout)
  print(layout, timesteps)
"""


def test_a_chunk_on_a_mesh_equals_one_on_one_device():
  """Tokens that come to weights (tensor), and weights that come to tokens (context)."""
  done = subprocess.run(
    [sys.executable, "-c", MESHES], env=with_devices(4), capture_output=True, text=True
  )
  assert len(done.stdout.splitlines()) == 3, done.stderr[-3000:]
