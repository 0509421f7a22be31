"""The performer: windows of sound equal the whole track, bad input is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.clip import audio_samples
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.lpm import LPM
from lpm_jax.models.vae import VideoVAE
from lpm_jax.streaming.effort import Effort
from lpm_jax.streaming.performer import Performer
from lpm_jax.streaming.sampler import StreamSettings
from tests.streaming.small import PICTURE, SIZES, VAE, make_performer


def perform(sound: np.ndarray, chunks: int) -> list[np.ndarray]:
  """Frames of chunks whose character says `sound` [S], which begins with the main picture."""
  performer = make_performer()
  state, _ = performer.begin(PICTURE)
  parts = sound[performer.first :]
  frames = []
  for c in range(chunks):
    own = parts[c * performer.samples :][: performer.samples]
    state, made, finite = performer.step(state, own, np.zeros_like(own), "")
    assert finite
    frames.append(made)
  return frames


def test_the_window_has_the_tokens_of_the_whole_track():
  """Chunk 5 hears, of its past, what an encoder of the whole track hears there."""
  performer, chunks = make_performer(), 6
  lpm = nnx.merge(performer._lpm_graph, performer._lpm)
  frames = 1 + 4 * 3 * chunks
  sound = 0.3 * np.random.default_rng(0).normal(size=audio_samples(frames)).astype(np.float32)
  whole = lpm.speak(jnp.asarray(sound)[None], 1 + 3 * chunks)
  window = sound[-(performer._past + performer.samples) :]
  tokens = lpm.speak(jnp.asarray(window)[None], performer._latents)
  reach = 1  # latents at the edge of a window, whose sound before it the encoder cannot know
  np.testing.assert_allclose(
    tokens[:, 1 + reach :], whole[:, -(performer._latents - 1 - reach) :], atol=1e-4
  )


def test_later_sound_changes_no_earlier_frame():
  sound = 0.3 * np.random.default_rng(1).normal(size=audio_samples(1 + 12 * 3)).astype(np.float32)
  changed = sound.copy()
  changed[make_performer().first + 2 * make_performer().samples :] = 0
  before, after = perform(sound, 3), perform(changed, 3)
  np.testing.assert_array_equal(before[:2], after[:2])
  assert (before[2] != after[2]).any()


def test_a_step_is_compiled_once():
  perform(np.zeros(audio_samples(1 + 12 * 2)), 2)
  compiled = make_performer().compiled_steps()
  perform(np.ones(audio_samples(1 + 12 * 4)), 4)
  assert make_performer().compiled_steps() == compiled


def test_nothing_is_compiled_after_a_warm_up_with_all_efforts():
  performer = make_performer()
  performer.warm_up(PICTURE, efforts=performer.efforts)
  assert list(performer.effort_seconds) == list(performer.efforts) == list(Effort)
  compiled, silence = performer.compiled_steps(), np.zeros(performer.samples)
  state, _ = performer.begin(PICTURE)
  for effort in (*performer.efforts, Effort.FULL):
    state, frames, finite = performer.step(state, silence, silence, "", effort)
    assert finite
  assert performer.compiled_steps() == compiled


def test_sound_of_another_length_is_refused():
  performer = make_performer()
  state, _ = performer.begin(PICTURE)
  with pytest.raises(ValueError, match=r"listen: found shape \(7,\), expected \(8000,\)"):
    performer.step(state, np.zeros(8000), np.zeros(7), "")


def test_references_have_the_shape_of_the_picture():
  with pytest.raises(ValueError, match=r"reference 0: found shape \(8, 8, 3\)"):
    make_performer().begin(PICTURE, [(PICTURE[:8, :8], 1, 0)])


def test_chunks_are_a_whole_number_of_samples():
  lpm, vae = LPM(SIZES, rngs=nnx.Rngs(0)), VideoVAE(VAE, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"causal.frames: found 2"):
    Performer(lpm, vae, StreamSettings(ChunkCausal(frames=2)))


def test_the_state_is_of_constant_size():
  performer = make_performer()
  state, _ = performer.begin(PICTURE)
  shapes = jax.tree.map(jnp.shape, state)
  for _ in range(6):
    state, _, _ = performer.step(state, np.zeros(8000), np.zeros(8000), "")
  assert jax.tree.map(jnp.shape, state) == shapes
