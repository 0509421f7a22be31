import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.clip import audio_samples
from lpm_jax.models.audio import SAMPLE_RATE, AudioConfig, AudioEncoder, log_mel

CONFIG = AudioConfig(width=8, bands=16, kernel=3, dilations=(1, 2))
LATENTS = 7
SAMPLES = audio_samples(4 * (LATENTS - 1) + 1)


def click(frame: int) -> np.ndarray:
  """Silence [1, S] but for a short burst in the middle of a video frame."""
  wave = np.zeros((1, SAMPLES), np.float32)
  middle = round((frame + 0.5) / 24 * SAMPLE_RATE)
  wave[0, middle - 20 : middle + 20] = 0.5 * np.resize([1, -1], 40)
  return wave


@pytest.mark.parametrize("frame", [0, 1, 12, 24])
def test_a_click_lands_in_the_row_of_its_video_frame(frame):
  silence = log_mel(np.zeros((1, SAMPLES)), LATENTS, CONFIG)
  change = np.abs(log_mel(click(frame), LATENTS, CONFIG) - silence).sum(axis=(0, 2))
  assert change.shape == (4 * LATENTS,)
  assert change.argmax() == 3 + frame  # three silent frames stand before frame 0


def test_a_tone_lands_in_the_band_of_its_pitch():
  time = np.arange(SAMPLES) / SAMPLE_RATE
  wave = 0.3 * np.stack([np.sin(2 * np.pi * pitch * time) for pitch in (300.0, 3000.0)])
  middle = log_mel(wave, LATENTS, CONFIG)[:, 12].reshape(2, 4, 16).mean(axis=1)
  low, high = middle.argmax(axis=1)
  assert low < high


def test_silence_and_noise_span_about_unit_scale():
  noise = 0.1 * np.random.default_rng(0).normal(size=(1, SAMPLES))
  for wave in (np.zeros((1, SAMPLES)), noise):
    mel = np.asarray(log_mel(wave, LATENTS, CONFIG))
    assert np.isfinite(mel).all()
    assert np.abs(mel).max() < 4.0


def test_a_token_hears_its_neighbourhood_and_nothing_else():
  encoder = AudioEncoder(CONFIG, rngs=nnx.Rngs(0))
  silence = encoder(jnp.zeros((1, SAMPLES)), LATENTS)
  assert silence.shape == (1, LATENTS, 4, 8)
  change = np.abs(encoder(click(12), LATENTS) - silence).max(axis=-1).reshape(-1)
  reach = 3  # one video frame each way from the first layer, two from the second
  heard = np.flatnonzero(change)
  assert 3 + 12 - reach - 1 <= heard.min() and heard.max() <= 3 + 12 + reach + 1
  assert change[3 + 12] > 0


def test_short_audio_is_padded_with_silence():
  wave = click(2)
  cut = log_mel(wave[:, : SAMPLES // 2], LATENTS, CONFIG)
  np.testing.assert_array_equal(cut, log_mel(wave, LATENTS, CONFIG))


def test_batches_are_encoded_one_by_one():
  waves = jax.random.normal(jax.random.key(0), (2, SAMPLES)) * 0.1
  encoder = AudioEncoder(CONFIG, rngs=nnx.Rngs(0))
  alone = encoder(waves[1:], LATENTS)
  np.testing.assert_allclose(encoder(waves, LATENTS)[1:], alone, atol=1e-5)
