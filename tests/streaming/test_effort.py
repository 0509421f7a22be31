"""Chunks with less work: what they are, and that any may follow any."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.cache import KVCache
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.vae import VAECache
from lpm_jax.streaming import effort
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.streaming.effort import Effort, Pace
from lpm_jax.streaming.sampler import OnlineLPM, StreamSettings, StreamState

CAUSAL = ChunkCausal(frames=2, sink=1, window=2)
SHAPE = (1, 2, 2, 2, 3)
CALLS: list[tuple[str, float]] = []  # (who, timestep) of every evaluation


class FakeTransformer(nnx.Module):
  """Leaves the mean of what it saw as keys, and says who was asked at which timestep."""

  def __init__(self, name: str, gain: float):
    self.name, self.gain = name, gain

  def turned(self, cache, height, width):
    return cache

  def extend(self, latents, timestep, conditions, caches, start):
    CALLS.append((self.name, round(float(timestep[0, 0]), 3)))
    key = jnp.broadcast_to(latents.mean(), (1, 2, 1, 1, CAUSAL.frames, 1, 2))
    seen = jnp.ones((1, CAUSAL.frames), bool)
    return self.gain * latents, KVCache(key, key, jnp.zeros(seen.shape, jnp.int32), seen)


class FakeVAE(nnx.Module):
  """Four frames of each latent."""

  def decode_step(self, latent, cache):
    return jnp.repeat(latent, 4, axis=1), VAECache((latent,), started=True)


def make_online(**settings) -> OnlineLPM:
  models = FakeTransformer("backbone", 0.3), FakeTransformer("refiner", 0.6), FakeVAE()
  return OnlineLPM(*models, StreamSettings(CAUSAL, **settings))


def make_state() -> tuple[StreamState, Conditions]:
  key = jnp.zeros((1, 2, 1, 1, 1, 1, 2))
  pinned = KVCache(key, key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
  caches = [StreamCache.empty(pinned, CAUSAL) for _ in range(2)]
  decoder = VAECache((jnp.zeros((1, 1, *SHAPE[2:])),), started=True)
  track, none = jnp.zeros((1, 2, 4, 1)), jnp.zeros((1, 0), jnp.int32)
  conditions = Conditions(track[0], track, track, jnp.zeros((1, 0, *SHAPE[2:])), none, none)
  return StreamState(*caches, decoder, jax.random.key(3), SHAPE), conditions


def evaluations(kind: Effort) -> list[tuple[str, float]]:
  CALLS.clear()
  effort.chunk(make_online(), kind, *make_state())
  return CALLS.copy()


def test_each_effort_leaves_out_what_it_says():
  first, second, history = (("backbone", t) for t in (1.0, 0.757, 0.1))
  refined, clean = (("refiner", t) for t in (0.522, 0.0))
  assert evaluations(Effort.FULL) == [first, second, history, refined, clean]
  assert evaluations(Effort.SHORT) == [first, history, refined, clean]
  assert evaluations(Effort.COARSE) == [first, history, clean]


def test_short_is_a_stream_of_one_backbone_evaluation():
  found = effort.chunk(make_online(), Effort.SHORT, *make_state())
  expected = make_online(backbone=(1.0,)).step(*make_state())
  found, expected = (jax.tree.leaves((x[0].replace(key=()), *x[1:])) for x in (found, expected))
  for some, others in zip(found, expected, strict=True):
    np.testing.assert_array_equal(some, others)


def test_coarse_shows_and_remembers_what_the_backbone_made():
  state, conditions = make_state()
  after, latents, video = effort.chunk(make_online(), Effort.COARSE, state, conditions)
  noise = jax.random.normal(state.keys()[0], (2, *SHAPE))[0]
  np.testing.assert_allclose(latents, noise - 0.3 * noise, rtol=1e-6)  # x0 = x1 - velocity
  np.testing.assert_array_equal(video[:, ::4], latents)
  held = after.refiner.key[:, :, :, :, : CAUSAL.frames]
  np.testing.assert_allclose(held, jnp.full_like(held, latents.mean()), rtol=1e-6)


def test_any_effort_may_follow_any():
  state, conditions = make_state()
  shapes = jax.tree.map(jnp.shape, state)
  for kind in (Effort.COARSE, Effort.FULL, Effort.SHORT, Effort.COARSE):
    state, _, _ = effort.chunk(make_online(), kind, state, conditions)
    assert jax.tree.map(jnp.shape, state) == shapes
  assert int(state.backbone.chunks) == int(state.refiner.chunks) == 4


def test_short_is_left_out_where_it_is_full():
  assert effort.efforts(StreamSettings()) == (Effort.FULL, Effort.SHORT, Effort.COARSE)
  assert effort.efforts(StreamSettings(backbone=(1.0,))) == (Effort.FULL, Effort.COARSE)


def test_the_pace_takes_the_most_that_fits_the_machine_as_it_is():
  pace = Pace({Effort.COARSE: 0.3, Effort.FULL: 0.5, Effort.SHORT: 0.4})
  assert pace.choose(0.6) is Effort.FULL
  assert pace.choose(0.45) is Effort.SHORT
  assert pace.choose(-1.0) is Effort.COARSE
  pace.took(Effort.SHORT, 0.8)
  assert pace.choose(0.9) is Effort.SHORT
  for _ in range(3):
    pace.took(Effort.SHORT, 0.4)
  assert pace.choose(0.6) is Effort.FULL
