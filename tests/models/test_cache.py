"""A stream with a cache equals one call over the whole video with the chunk-causal mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from lpm_jax.models import context
from lpm_jax.models.attention import ChunkCausal, attend
from lpm_jax.models.cache import KVCache
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import VideoTransformer
from tests.models.test_transformer import TINY, make_inputs, make_model

CAUSAL = ChunkCausal(frames=2, sink=1, window=1)
CHUNKS = 4
FRAMES = 1 + CAUSAL.frames * CHUNKS
PAST = 2  # frames of audio before a chunk that it is given


@pytest.fixture(scope="module")
def model() -> VideoTransformer:
  return make_model()


def make_stream(seed: int = 0) -> tuple[jax.Array, jax.Array, Conditions]:
  latents, _, conditions = make_inputs(seed, FRAMES)
  chunk = CAUSAL.chunk(jnp.arange(FRAMES))
  timestep = jnp.broadcast_to(jnp.where(chunk < 0, 0.0, 0.2 + 0.1 * chunk), latents.shape[:2])
  return latents, timestep, conditions


def of_frames(conditions: Conditions, start: int, stop: int, past: int = 0) -> Conditions:
  """Conditions of some frames; with past audio (silence before the video) and no references."""
  tracks = {
    name: jnp.pad(getattr(conditions, name), ((0, 0), (past, 0), (0, 0), (0, 0)))[
      :, start : stop + past
    ]
    for name in ("speak", "listen")
  }
  return conditions.replace(**tracks)


def test_cached_chunks_equal_the_masked_whole(model):
  """Chunk by chunk against what is left of the past, as long as no position has to move."""
  latents, timestep, conditions = make_stream()
  whole = jax.jit(lambda *x: model(*x, causal=CAUSAL))(latents, timestep, conditions)
  pinned = model.remember(latents[:, :1], of_frames(conditions, 0, 1))
  extend = jax.jit(model.extend)
  past: list[KVCache] = []
  for c in range(CHUNKS):
    start, stop = 1 + c * CAUSAL.frames, 1 + (c + 1) * CAUSAL.frames
    seen = [kept for n, kept in enumerate(past) if n < CAUSAL.sink or n >= c - CAUSAL.window]
    caches = [pinned, *seen]
    given = of_frames(conditions, start, stop, PAST).without_references()
    chunk = slice(start, stop)
    found, kept = extend(latents[:, chunk], timestep[:, chunk], given, caches, jnp.int32(start))
    past.append(kept)
    np.testing.assert_allclose(found, whole[:, chunk], atol=2e-5, err_msg=f"chunk {c}")


@pytest.mark.parametrize("name", ["latents", "speak", "listen"])
def test_later_frames_leave_earlier_chunks_as_they_are(model, name):
  latents, timestep, conditions = make_stream()
  run = jax.jit(lambda *x: model(*x, causal=CAUSAL))
  before = run(latents, timestep, conditions)
  later = 1 + 2 * CAUSAL.frames
  if name == "latents":
    latents = latents.at[:, later:].add(1.0)
  else:
    conditions = conditions.replace(**{name: getattr(conditions, name).at[:, later:].add(1.0)})
  after = run(latents, timestep, conditions)
  np.testing.assert_array_equal(after[:, :later], before[:, :later])
  assert (after[:, later:] != before[:, later:]).any()


def test_only_the_distance_of_a_cached_key_counts(model):
  """Keys are turned when used: a cache and a chunk that move together give the same video."""
  latents, timestep, conditions = make_stream()
  cache = model.remember(latents[:, :1], of_frames(conditions, 0, 1))
  given = of_frames(conditions, 1, 3, PAST).without_references()
  extend = jax.jit(model.extend)
  arguments = latents[:, 1:3], timestep[:, 1:3], given
  here = extend(*arguments, [cache], jnp.int32(PAST + 1))[0]
  moved = extend(*arguments, [cache.replace(time=cache.time + 40)], jnp.int32(PAST + 41))[0]
  stretched = extend(*arguments, [cache], jnp.int32(PAST + 41))[0]
  np.testing.assert_allclose(moved, here, atol=2e-5)
  assert np.abs(stretched - here).max() > 1e-3


def test_what_is_not_seen_is_not_there(model):
  latents, timestep, conditions = make_stream()
  cache = model.remember(latents[:, :1], of_frames(conditions, 0, 1))
  given = of_frames(conditions, 1, 3, PAST).without_references()
  other = jax.tree.map(lambda x: x + jnp.ones_like(x) if x.dtype != bool else x, cache)
  other = other.replace(seen=jnp.zeros_like(cache.seen))
  one, other = (
    model.extend(latents[:, 1:3], timestep[:, 1:3], given, c, jnp.int32(1))[0]
    for c in ([cache], [cache, other])
  )
  np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_chunks_of_a_mask():
  mask = np.asarray(ChunkCausal(frames=1, sink=1, window=1).visible(5)).astype(int)
  expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 1, 1]]
  np.testing.assert_array_equal(mask, expected)


def test_the_kernel_with_a_gradient_sees_what_the_dense_one_sees(monkeypatch):
  """`attend_cached` of several caches, empty slots, keys that are filled up, and its gradient."""
  monkeypatch.setattr(context, "WHOLE", 128)
  draw = jax.random.split(jax.random.key(0), 6)
  heads, head, tokens = 2, 128, 8
  query = jax.random.normal(draw[0], (2, heads, 40, head))
  keys, values = (
    tuple(jax.random.normal(jax.random.fold_in(k, g), (2, heads, g, tokens, head)) for g in (3, 14))
    for k in draw[1:3]
  )
  seen = jax.random.bernoulli(draw[3], 0.5, (2, 17)).at[:, 0].set(True)
  weight = jax.random.normal(draw[4], query.shape)

  def dense(query, keys, values):
    joined = (
      rearrange(jnp.concatenate(x, axis=2), "b k g n d -> b (g n) k d") for x in (keys, values)
    )
    mask = jnp.repeat(seen, tokens, axis=1)[:, None, None]
    return jnp.swapaxes(attend(jnp.swapaxes(query, 1, 2), *joined, mask=mask), 1, 2)

  def with_gradient(run):
    loss = lambda *given: (run(*given) * weight).sum()  # noqa: E731
    return jax.jit(lambda *given: (run(*given), jax.grad(loss, argnums=(0, 1, 2))(*given)))

  expected = with_gradient(dense)(query, keys, values)
  fused = lambda *given: context.attend_cached(*given, seen, kernel="splash")  # noqa: E731
  found = with_gradient(fused)(query, keys, values)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_chunk_of_the_fused_kernel_is_that_of_the_dense_one():
  """`extend` with a gradient, tokens of all frames as one sequence."""
  wide = dataclasses.replace(TINY, heads=1, width=128)
  latents, _, conditions = make_stream()
  timestep, given = jnp.full((len(latents), 1), 0.7), of_frames(conditions, 3, 5, PAST)

  def made(attention: str) -> tuple:
    model = make_model(dataclasses.replace(wide, attention=attention))
    pinned = make_model(wide).remember(latents[:, :1], of_frames(conditions, 0, 1))
    graphdef, state = nnx.split(model)

    def loss(state):
      chunk = latents[:, 3:5], timestep, given.without_references()
      velocity, kept = nnx.merge(graphdef, state).extend(*chunk, [pinned], jnp.int32(3))
      return jnp.square(velocity).sum(), (velocity, kept.key)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state)

  found, expected = made("splash"), made("dense")
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    scale = np.abs(b).max() + 1e-6
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-4)
