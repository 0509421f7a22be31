"""The sampler: scan = step by step = packets, later input changes nothing, bounded state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.streaming.sampler import OnlineLPM, StreamSettings, audio_chunks, coarse_latents
from tests.models.test_transformer import make_model, randomise

CAUSAL = ChunkCausal(frames=2, sink=1, window=2)
CHUNKS, BATCH, PAST = 6, 2, 3


@pytest.fixture(scope="module")
def online() -> OnlineLPM:
  sizes = VAEConfig(base=4, multipliers=(1, 1), temporal=(True,), blocks=1, latent_channels=2)
  vae = randomise(VideoVAE(sizes, rngs=nnx.Rngs(0)), jax.random.key(3))
  refiner = randomise(make_model(), jax.random.key(2))
  return OnlineLPM(make_model(), refiner, vae, StreamSettings(CAUSAL))


@pytest.fixture(scope="module")
def step(online):
  graphdef, model = nnx.split(online)
  compiled = jax.jit(lambda model, *x: nnx.merge(graphdef, model).step(*x), donate_argnums=1)
  return functools.partial(compiled, model)


def make_conditions(seed: int = 0) -> tuple[jax.Array, Conditions, Conditions]:
  """Picture, conditions of the beginning, conditions of all chunks [CHUNKS, ...]."""
  keys = iter(jax.random.split(jax.random.key(seed), 8))
  frames = 1 + CHUNKS * CAUSAL.frames
  tracks = [jax.random.normal(next(keys), (BATCH, frames, 4, 6)) for _ in range(2)]
  first = Conditions(
    text=jax.random.normal(next(keys), (BATCH, 4, 5)),
    speak=tracks[0][:, :1],
    listen=tracks[1][:, :1],
    references=jax.random.normal(next(keys), (BATCH, 1, 4, 4, 2)),
    reference_kind=jnp.zeros((BATCH, 1), jnp.int32),
    reference_label=jnp.zeros((BATCH, 1), jnp.int32),
  )
  over_chunks = lambda x: jnp.broadcast_to(x, (CHUNKS, *x.shape))  # noqa: E731
  chunks = jax.tree.map(over_chunks, first).replace(
    speak=audio_chunks(tracks[0], CAUSAL.frames, PAST),
    listen=audio_chunks(tracks[1], CAUSAL.frames, PAST),
  )
  return jax.random.normal(next(keys), (BATCH, 1, 4, 4, 2)), first, chunks


def chunk(chunks: Conditions, index: int) -> Conditions:
  return jax.tree.map(lambda x: x[index], chunks)


def stream(online, step, picture, first, chunks) -> tuple[np.ndarray, np.ndarray]:
  """Latents and video, chunk by chunk."""
  state, _ = online.begin(picture, first, jax.random.key(5))
  made = []
  for i in range(CHUNKS):
    state, *outputs = step(state, chunk(chunks, i))
    made.append(outputs)
  return tuple(np.stack([np.asarray(x) for x in part]) for part in zip(*made, strict=True))


def test_scan_equals_step_by_step_bit_for_bit(online, step):
  picture, first, chunks = make_conditions()
  latents, video = stream(online, step, picture, first, chunks)
  assert latents.shape == (CHUNKS, BATCH, 2, 4, 4, 2)
  assert video.shape == (CHUNKS, BATCH, 4, 8, 8, 3)
  graphdef, model = nnx.split(online)
  run = jax.jit(lambda model, *x: nnx.merge(graphdef, model).run(*x))
  state, _ = online.begin(picture, first, jax.random.key(5))
  state, scanned, scanned_video = run(model, state, chunks)
  np.testing.assert_array_equal(scanned, latents)
  np.testing.assert_array_equal(scanned_video, video)
  assert int(state.chunks()) == CHUNKS


@pytest.mark.parametrize("name", ["text", "speak", "listen"])
def test_what_comes_later_changes_nothing_before(online, step, name):
  picture, first, chunks = make_conditions()
  before, _ = stream(online, step, picture, first, chunks)
  own = getattr(chunks, name)[3:]
  changed = own.at[:, :, PAST:].add(1.0) if name != "text" else own + 1.0
  later = chunks.replace(**{name: jnp.concatenate([getattr(chunks, name)[:3], changed])})
  after, _ = stream(online, step, picture, first, later)
  np.testing.assert_array_equal(after[:3], before[:3])
  assert (after[3:] != before[3:]).any()


def test_the_decoder_in_the_loop_equals_decoding_the_whole(online, step):
  picture, first, chunks = make_conditions()
  _, frame = online.begin(picture, first, jax.random.key(5))
  latents, video = stream(online, step, picture, first, chunks)
  whole = online.vae.decode(jnp.concatenate([picture, *latents], axis=1))
  np.testing.assert_allclose(jnp.concatenate([frame, *video], axis=1), whole, atol=1e-4)


def test_a_stream_compiles_once_and_keeps_its_size(online, step):
  picture, first, chunks = make_conditions()
  state, _ = online.begin(picture, first, jax.random.key(5))
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  for i in range(3 * CHUNKS):
    state, latents, _ = step(state, chunk(chunks, i % CHUNKS))
  assert step.func._cache_size() == 1
  assert sum(x.nbytes for x in jax.tree.leaves(state)) == size
  assert np.isfinite(latents).all()


def test_without_a_level_the_history_is_what_the_last_evaluation_left(online):
  picture, first, chunks = make_conditions()
  settings = StreamSettings(CAUSAL, backbone=(1.0,), history=None)
  assert settings.evaluations() == (1, 2) and StreamSettings().evaluations() == (3, 2)
  backbone, of_chunk = online.backbone, chunk(chunks, 0).without_references()
  cache = StreamCache.empty(backbone.remember(picture, first), CAUSAL)
  shape, key = (BATCH, CAUSAL.frames, *picture.shape[2:]), jax.random.key(1)
  clean, after = coarse_latents(backbone, cache, settings, of_chunk, key, shape)
  noise = jax.random.normal(key, (2, *shape))[0]
  last = jnp.ones(shape[:2]), of_chunk, cache.view(), cache.start()
  velocity, kept = backbone.extend(noise, *last)
  np.testing.assert_allclose(clean, noise - velocity, atol=1e-5)
  written = after.key[:, :, :, :, : CAUSAL.frames]
  np.testing.assert_allclose(written, kept.key, atol=1e-5)


def test_settings_are_checked():
  wrongs = dict(backbone=(0.7, 1.0)), dict(backbone=()), dict(refiner=1.0), dict(history=1)
  for wrong in (*wrongs, dict(temperature=1.5)):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      StreamSettings(CAUSAL, **wrong)


def test_temperature_scales_the_noise_that_is_added_to_latents_alone():
  settings, key, shape = StreamSettings(CAUSAL, temperature=0.5), jax.random.key(0), (2, 3)
  full = StreamSettings(CAUSAL)
  scales = settings.of_backbone().noises(key, shape) / full.of_backbone().noises(key, shape)
  np.testing.assert_array_equal(scales[:, 0, 0], [1.0, 0.5, 1.0])  # pure noise, T1, the history
  scales = settings.of_refiner().noises(key, shape) / full.of_refiner().noises(key, shape)
  np.testing.assert_array_equal(scales[:, 0, 0], [0.5])
