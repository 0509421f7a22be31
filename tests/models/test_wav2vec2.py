"""wav2vec 2.0 in streaming windows, and the adapter to latent frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models.wav2vec2 import (
  AudioAdapter,
  Wav2Vec2Config,
  Wav2Vec2Encoder,
  normalise_waveform,
  streamed_states,
)

SMALL = Wav2Vec2Config(
  channels=4, width=8, heads=2, hidden=8, layers=2, position_kernel=4, position_groups=2
)


@pytest.fixture(scope="module")
def encoder() -> Wav2Vec2Encoder:
  return Wav2Vec2Encoder(SMALL, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def waveform() -> jax.Array:
  return jax.random.normal(jax.random.key(1), (1, 5 * 16_000 // 2))


def test_features_are_counted_as_they_come(encoder):
  for samples in (400, 16_000, 16_123):
    shape = jax.eval_shape(encoder, jnp.zeros((1, samples))).shape
    assert shape == (1, SMALL.features(samples), 3, 8)
  with pytest.raises(ValueError, match="found 300 samples"):
    encoder(jnp.zeros((1, 300)))


def test_a_second_is_encoded_from_itself_and_two_seconds_before(encoder, waveform):
  states = streamed_states(encoder, waveform)
  assert states.shape == (1, 150, 3, 8)  # a partial second is filled
  window = jnp.pad(waveform, ((0, 0), (0, 8000)))
  window = jnp.pad(window, ((0, 0), (80, 0)))
  expected = encoder(normalise_waveform(window))[:, -50:]
  np.testing.assert_allclose(states[:, 100:], expected, atol=1e-5)


def test_later_sound_changes_no_earlier_second(encoder, waveform):
  before = streamed_states(encoder, waveform)
  after = streamed_states(encoder, waveform.at[:, 32_000:].mul(3.0))
  np.testing.assert_array_equal(before[:, :100], after[:, :100])
  assert jnp.abs(before - after)[:, 100:].max() > 1e-3


def test_a_frame_reads_the_features_around_its_middle():
  adapter = AudioAdapter(SMALL, 6, rngs=nnx.Rngs(2))
  states = jax.random.normal(jax.random.key(3), (1, 100, 3, 8))
  tokens = adapter(states, 7)
  assert tokens.shape == (1, 7, 4, 6)
  np.testing.assert_array_equal(tokens[:, 0, 0], tokens[:, 0, 3])  # frames before 0 repeat it
  frame = 12  # of the video: 0.5 s to 0.54 s; its middle is feature 26
  moved = jnp.abs(adapter(states.at[:, 26].add(1.0), 7) - tokens).max(-1).reshape(-1)[3:]
  assert moved[frame] > 1e-3
  assert np.nonzero(moved > 0)[0].min() >= frame - 1
  assert np.nonzero(moved > 0)[0].max() <= frame + 1
