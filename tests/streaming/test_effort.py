"""Chunks with less work: what they are, and that any may follow any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.streaming import effort
from lpm_jax.streaming.effort import Effort, Pace
from lpm_jax.streaming.sampler import OnlineLPM, StreamSettings, coarse_latents, decoded_video
from tests.streaming.test_sampler import CAUSAL, chunk, make_conditions, online  # noqa: F401


@pytest.fixture(scope="module")
def begun(online):  # noqa: F811
  picture, first, chunks = make_conditions()
  state, _ = online.begin(picture, first, jax.random.key(5))
  return state, chunk(chunks, 0)


def run(online, work, state, conditions):  # noqa: F811
  graphdef, model = nnx.split(online)
  call = jax.jit(lambda model, *x: effort.chunk(nnx.merge(graphdef, model), work, *x))
  return call(model, state, conditions)


def test_short_is_a_stream_of_one_backbone_evaluation(online, begun):  # noqa: F811
  settings = StreamSettings(CAUSAL, backbone=(1.0,))
  one = OnlineLPM(online.backbone, online.refiner, online.vae, settings)
  graphdef, model = nnx.split(one)
  expected = jax.jit(lambda model, *x: nnx.merge(graphdef, model).step(*x))(model, *begun)
  found = run(online, Effort.SHORT, *begun)
  for some, others in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    if not jnp.issubdtype(some.dtype, jax.dtypes.prng_key):
      np.testing.assert_allclose(some, others, atol=1e-5)


def test_coarse_shows_and_remembers_what_the_backbone_made(online, begun):  # noqa: F811
  state, conditions = begun
  settings = StreamSettings(CAUSAL, backbone=(1.0,))
  conditions = conditions.without_references()
  expected, _ = coarse_latents(
    online.backbone, state.backbone, settings, conditions, state.keys()[0], state.shape
  )
  shown, _ = decoded_video(online.vae, state.decoder, expected)
  after, latents, video = run(online, Effort.COARSE, *begun)
  np.testing.assert_allclose(latents, expected, atol=1e-5)
  np.testing.assert_allclose(video, shown, atol=1e-5)
  clean = jnp.zeros(expected.shape[:2])
  cache = state.refiner
  past = [online.refiner.turned(view, *expected.shape[2:4]) for view in cache.view()]
  _, kept = online.refiner.extend(expected, clean, conditions, past, cache.start())
  np.testing.assert_allclose(after.refiner.key[:, :, :, :, : CAUSAL.frames], kept.key, atol=1e-5)


def test_any_effort_may_follow_any(online, begun):  # noqa: F811
  state, conditions = begun
  shapes = jax.tree.map(jnp.shape, state)
  for work in (Effort.COARSE, Effort.FULL, Effort.SHORT):
    state, latents, _ = run(online, work, state, conditions)
    assert jax.tree.map(jnp.shape, state) == shapes
    assert np.isfinite(latents).all()
  assert int(state.backbone.chunks) == int(state.refiner.chunks) == 3


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
