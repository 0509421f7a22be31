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

ONE = StreamSettings(CAUSAL, backbone=(1.0,))


@pytest.fixture(scope="module")
def begun(online):  # noqa: F811
  picture, first, chunks = make_conditions()
  graphdef, model = nnx.split(online)
  begin = jax.jit(lambda model, *x: nnx.merge(graphdef, model).begin(*x)[0])
  return begin(model, picture, first, jax.random.key(5)), chunk(chunks, 0)


@pytest.fixture(scope="module")
def work(online):  # noqa: F811
  """A compiled chunk of each cheaper effort."""
  graphdef, model = nnx.split(online)

  def of(kind):
    call = jax.jit(lambda model, *x: effort.chunk(nnx.merge(graphdef, model), kind, *x))
    return lambda *x: call(model, *x)

  return {kind: of(kind) for kind in (Effort.SHORT, Effort.COARSE)}


def test_short_is_a_stream_of_one_backbone_evaluation(online, work, begun):  # noqa: F811
  graphdef, model = nnx.split(OnlineLPM(online.backbone, online.refiner, online.vae, ONE))
  step = jax.jit(lambda model, *x: nnx.merge(graphdef, model).step(*x))
  found, expected = work[Effort.SHORT](*begun), step(model, *begun)
  for some, others in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    if not jnp.issubdtype(some.dtype, jax.dtypes.prng_key):
      np.testing.assert_allclose(some, others, atol=1e-5)


def test_coarse_shows_and_remembers_what_the_backbone_made(online, work, begun):  # noqa: F811
  state, conditions = begun
  graphdef, model = nnx.split(online)

  @jax.jit
  def expected(model, state, conditions):
    online, conditions = nnx.merge(graphdef, model), conditions.without_references()
    key, cache = state.keys()[0], state.refiner
    latents, _ = coarse_latents(online.backbone, state.backbone, ONE, conditions, key, state.shape)
    past = [online.refiner.turned(view, *latents.shape[2:4]) for view in cache.view()]
    clean = jnp.zeros(latents.shape[:2])
    _, kept = online.refiner.extend(latents, clean, conditions, past, cache.start())
    return latents, decoded_video(online.vae, state.decoder, latents)[0], kept.key

  latents, video, key = expected(model, state, conditions)
  after, found, shown = work[Effort.COARSE](*begun)
  np.testing.assert_allclose(found, latents, atol=1e-5)
  np.testing.assert_allclose(shown, video, atol=1e-5)
  np.testing.assert_allclose(after.refiner.key[:, :, :, :, : CAUSAL.frames], key, atol=1e-5)


def test_any_effort_may_follow_any(work, begun):
  state, conditions = begun
  shapes = jax.tree.map(jnp.shape, state)
  for kind in (Effort.COARSE, Effort.SHORT, Effort.COARSE):
    state, latents, _ = work[kind](state, conditions)
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
