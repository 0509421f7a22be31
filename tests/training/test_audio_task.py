"""Pretraining of the audio encoders: pose and sound stay together, Base takes the encoders over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.puppets import audio as puppets
from configs.puppets import base as base_config
from data_pipelines.clip import EncodedClip, audio_samples
from data_pipelines.puppets.pose import POSE_FIELDS, POSE_INDEX
from lpm_jax.models.audio import AudioConfig
from lpm_jax.training import audio, loop
from lpm_jax.training.audio import AudioRegressor, AudioTask, example_from_clip
from lpm_jax.weights import shipped


def spoken_clip(latents: int = 9, truth: bool = True) -> EncodedClip:
  """The mouth opens with frame number / 100; the sound is the frame number, too."""
  frames = 4 * (latents - 1) + 1
  samples = audio_samples(frames)
  pose = np.zeros((frames, len(POSE_FIELDS)), np.float32)
  pose[:, POSE_INDEX["mouth_open"]] = np.arange(frames) / 100
  sound = (np.arange(samples) * 24 / 16_000 / 100).astype(np.float32)
  return EncodedClip(
    clip_id="c",
    character_id="p",
    style="anime",
    source="test",
    consent="synthetic",
    fps=24.0,
    text="",
    latents=np.zeros((latents, 2, 2, 16), np.float32),
    speak_audio=sound,
    listen_audio=-sound,
    state=np.zeros(frames, np.int8),
    references=np.zeros((0, 2, 2, 16), np.float32),
    reference_kind=np.zeros(0, np.int32),
    reference_label=np.zeros(0, np.int32),
    truth={"pose": pose} if truth else {},
  )


def test_examples_keep_sound_and_pose_together():
  starts = set()
  for seed in range(20):
    example = example_from_clip(spoken_clip(), np.random.default_rng(seed))
    assert example["pose"].shape == (21, len(audio.FIELDS))
    assert example["speak_audio"].shape == (audio_samples(21),)
    opened = example["pose"][0, 0] * audio._DEVIATION[0]
    assert example["speak_audio"][0] == pytest.approx(opened, abs=1e-4)
    np.testing.assert_array_equal(example["listen_audio"], -example["speak_audio"])
    starts.add(round(float(opened) * 100))
  assert starts == {0, 4, 8, 12}


def test_clip_without_truth_is_refused():
  with pytest.raises(ValueError, match="clip 'c': truth has no pose"):
    example_from_clip(spoken_clip(truth=False), np.random.default_rng(0))


def test_prediction_of_a_frame_comes_from_the_token_of_its_time():
  """A click changes the prediction most at the video frame in which it sounds."""
  model = AudioRegressor(AudioConfig(width=16, bands=16, dilations=(1,)), rngs=nnx.Rngs(0))
  silent = jnp.zeros((1, audio_samples(33)))
  frame = 20
  sample = audio_samples(frame)
  click = silent.at[:, sample : sample + 300].set(0.5)
  change = jnp.abs(model(click, silent, 9) - model(silent, silent, 9)).sum((0, 2))
  assert change.shape == (33,)
  assert int(change.argmax()) in (frame - 1, frame, frame + 1)
  assert not change[: frame - 4].any()


def test_explained_variance_is_one_for_a_perfect_and_none_for_a_constant_prediction():
  task = AudioTask(puppets.get_config("tiny"))
  pose = jax.random.normal(jax.random.key(0), (2, 21, len(audio.FIELDS)))
  batch = {"pose": pose, "speak_audio": None, "listen_audio": None}
  for prediction, share in ((pose, 1.0), (jnp.broadcast_to(pose.mean((0, 1)), pose.shape), 0.0)):
    loss, metrics = task.loss(lambda *_, p=prediction: p, batch, None, None)
    assert metrics["explained_mouth_open"] == pytest.approx(share, abs=1e-4)
    assert (float(loss) == 0) == (share == 1)


def test_base_starts_from_the_pretrained_encoders(tmp_path):
  config = base_config.get_config("tiny")
  sizes = shipped.config_from_dict(AudioConfig, config.model.audio.to_dict())
  trained = AudioRegressor(sizes, rngs=nnx.Rngs(7))
  task = AudioTask(puppets.get_config("tiny"))
  path = tmp_path / "audio.safetensors"
  shipped.save_module(path, trained, config=task.config_dict(), dtype="float32")
  config.audio = str(tmp_path)
  state = loop.prepare(config).state
  for name in ("speak", "listen"):
    kernel = getattr(trained, name).project.kernel[...]
    np.testing.assert_array_equal(state.params[name]["project"]["kernel"][...], kernel)
    np.testing.assert_array_equal(state.ema[name]["project"]["kernel"][...], kernel)
