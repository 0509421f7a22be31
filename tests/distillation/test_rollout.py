"""Rollouts: they are the stream, and the replayed gradient is the direct one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.distillation import rollout
from lpm_jax.distillation.rollout import Script
from lpm_jax.models.conditions import Conditions
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.streaming.sampler import (
  Evaluations,
  StreamSettings,
  coarse_latents,
  evaluate,
  past_of,
  refined_latents,
)
from tests.models.test_transformer import make_model
from tests.streaming.test_sampler import CAUSAL, CHUNKS, make_conditions

SETTINGS = StreamSettings(CAUSAL)
HOW = {"backbone": SETTINGS.of_backbone(), "refiner": SETTINGS.of_refiner()}


@functools.cache
def model_parts() -> tuple[nnx.GraphDef, nnx.State]:
  return nnx.split(make_model())


@functools.cache
def beginning() -> tuple[StreamCache, Conditions, tuple[int, ...]]:
  """An empty stream, conditions of its chunks, shape of its latents."""
  graphdef, state = model_parts()
  picture, first, chunks = make_conditions()
  left = jax.jit(lambda s: nnx.merge(graphdef, s).remember(picture, first))(state)
  chunks = jax.vmap(lambda c: c.without_references())(chunks)
  shape = (CHUNKS, len(picture), CAUSAL.frames, *picture.shape[2:])
  return StreamCache.empty(left, CAUSAL), chunks, shape


def make_script(how: Evaluations, exit: int) -> tuple[StreamCache, Script]:
  cache, chunks, shape = beginning()
  script = Script(
    conditions=chunks,
    keys=jax.random.split(jax.random.key(7), CHUNKS),
    given=jax.random.normal(jax.random.key(8), shape),
    exit=jnp.int32(exit),
    history=jnp.full(CHUNKS, how.history or 0.0),
  )
  return cache, script


@pytest.mark.parametrize("name", HOW)
def test_the_last_exit_is_the_stream(name):
  how = HOW[name]
  cache, script = make_script(how, len(how.levels) - 1)
  graphdef, state = model_parts()
  rolled = jax.jit(lambda s, *x: rollout.roll_out(nnx.merge(graphdef, s), how, *x))
  made, after = rolled(state, cache, script)

  @jax.jit
  def streamed(state, cache, conditions, key, given):
    model = nnx.merge(graphdef, state)
    if name == "backbone":
      return coarse_latents(model, cache, SETTINGS, conditions, key, given.shape)
    return refined_latents(model, cache, SETTINGS, conditions, key, given)

  for i in range(CHUNKS):
    own = jax.tree.map(lambda x, i=i: x[i], (script.conditions, script.keys, script.given))
    found, cache = streamed(state, cache, *own)
    np.testing.assert_allclose(made[i], found, atol=2e-5)
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def direct(model, how: Evaluations, cache: StreamCache, script: Script) -> jax.Array:
  """What autodiff makes of the same stream: a gradient through each exit, caches constant."""
  graphdef, state = nnx.split(model)
  stop, exits = jax.lax.stop_gradient, int(script.exit) + 1

  def chunk(cache, own):
    conditions, key, clean, history = own
    model, noises = nnx.merge(graphdef, state), how.noises(key, clean.shape)
    past = past_of(model, cache, clean.shape)
    for level, noise in zip(how.levels[:exits], noises, strict=False):
      clean, kept = evaluate(model, past, stop(clean), noise, level, conditions)
    if how.history is not None:
      _, kept = evaluate(model, past, stop(clean), noises[-1], history, conditions)
    return stop(cache.pushed(kept)), clean

  stretch = script.conditions, script.keys, script.given, script.history
  return jax.lax.scan(chunk, cache, stretch)[1]


@functools.cache
def replayed_gradient(how: Evaluations):
  """The gradient of a loss of a rollout, compiled for every exit."""
  graphdef, _ = model_parts()

  def loss(state, cache, script, weights):
    made, _ = rollout.roll_out(nnx.merge(graphdef, state), how, cache, script)
    return jnp.sum(weights * jnp.square(made))

  return jax.jit(jax.grad(loss))


@pytest.mark.parametrize(
  ("how", "exit"),
  [
    (HOW["backbone"], 0),
    (HOW["backbone"], 1),
    (HOW["refiner"], 0),
    (Evaluations((1.0, 0.7), None), 1),
  ],
)
def test_the_replayed_gradient_is_the_direct_one(how, exit):
  cache, script = make_script(how, exit)
  script = script.replace(history=script.history + 0.05 * jnp.arange(CHUNKS))
  graphdef, state = model_parts()
  weights = jax.random.normal(jax.random.key(9), script.given.shape)

  def loss(state):
    made = direct(nnx.merge(graphdef, state), how, cache, script)
    return jnp.sum(weights * jnp.square(made))

  replayed = replayed_gradient(how)(state, cache, script, weights)
  expected = jax.jit(jax.grad(loss))(state)
  sizes = [float(jnp.abs(x).max()) for x in jax.tree.leaves(expected)]
  assert sum(size > 0 for size in sizes) > len(sizes) / 2
  for a, b in zip(jax.tree.leaves(replayed), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(sizes), rtol=1e-3)


def test_chunks_and_histories_are_constants_of_the_gradient():
  """Only a chunk's own loss moves the weights through it, and nothing reaches the cache."""
  how = HOW["backbone"]
  cache, script = make_script(how, 1)
  graphdef, state = model_parts()

  def loss(cache, script):
    return rollout.roll_out(nnx.merge(graphdef, state), how, cache, script)[0].sum()

  both = jax.grad(
    lambda key, given: loss(cache.replace(key=key), script.replace(given=given)), argnums=(0, 1)
  )
  of_cache, of_given = jax.jit(both)(cache.key, script.given)
  assert not np.any(of_cache) and not np.any(of_given)


def test_histories_are_corrupted_with_their_probability():
  how = HOW["backbone"]
  levels = rollout.draw_history(jax.random.key(0), how, 4000, 0.3, 0.6)
  more = levels > how.history
  assert 0.27 < float(more.mean()) < 0.33
  assert float(levels.min()) == pytest.approx(how.history) and float(levels.max()) < 0.6
  np.testing.assert_allclose(levels[more].mean(), (how.history + 0.6) / 2, atol=0.02)


def test_every_exit_is_drawn():
  how = Evaluations((1.0, 0.8, 0.5), 0.1)
  draws = {int(rollout.draw_exit(jax.random.key(i), how)) for i in range(40)}
  assert draws == {0, 1, 2}


def test_memory_does_not_grow_with_the_chunks():
  """Temporaries of the gradient: those of one chunk, and per chunk only its latents."""
  how, sizes = HOW["backbone"], []
  graphdef, state = model_parts()
  cache, script = make_script(how, 1)
  for repeats in (1, 6):
    stretch = dict(conditions=script.conditions, given=script.given, history=script.history)
    longer = jax.tree.map(lambda x, n=repeats: jnp.concatenate([x] * n), stretch)
    longer["keys"] = jnp.concatenate([script.keys] * repeats)
    longer = script.replace(**longer)

    def loss(state, script):
      return jnp.square(rollout.roll_out(nnx.merge(graphdef, state), how, cache, script)[0]).sum()

    memory = jax.jit(jax.grad(loss)).lower(state, longer).compile().memory_analysis()
    sizes.append(memory.temp_size_in_bytes)
  assert sizes[1] - sizes[0] < 8 * (longer.given.nbytes - script.given.nbytes) < sizes[0]
