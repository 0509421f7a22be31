"""Pretraining of the small audio encoders: from both tracks to the pose of the character.

At the 17B scale the encoder is a pretrained wav2vec2. Here the two small encoders first learn what
in speech and in a partner's phrases moves a face, by linear regression from their tokens; the Base
model then starts from features in which a mouth is already visible.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from data_pipelines.clip import EncodedClip, audio_samples
from data_pipelines.loader import stack
from data_pipelines.puppets.pose import POSE_INDEX
from data_pipelines.records import RecordSource
from lpm_jax.models.audio import FRAMES_PER_LATENT, AudioConfig, AudioEncoder
from lpm_jax.models.lpm import LPM
from lpm_jax.weights import shipped

FIELDS = ("mouth_open", "mouth_width", "pitch", "brow", "smile", "gaze_x", "gaze_y")


class AudioRegressor(nnx.Module):
  """Both encoders, and a linear map from each to FIELDS of the pose; their sum is the prediction.

  Args:
    config: sizes of either encoder.
    rngs: random streams; `params` is used.
  """

  def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs):
    self.speak, self.listen = (AudioEncoder(config, rngs=rngs) for _ in range(2))
    self.from_speak = nnx.Linear(config.width, len(FIELDS), rngs=rngs)
    self.from_listen = nnx.Linear(config.width, len(FIELDS), use_bias=False, rngs=rngs)

  def __call__(self, speak_audio: Array, listen_audio: Array, latents: int) -> Array:
    """Waveforms [B, S] -> pose in deviations of the data [B, 4 * latents - 3, len(FIELDS)]."""
    heard = self.from_speak(self.speak(speak_audio, latents))
    heard = heard + self.from_listen(self.listen(listen_audio, latents))
    # The first latent frame is one video frame: three tokens before it have no picture.
    return heard.reshape(len(heard), -1, len(FIELDS))[:, FRAMES_PER_LATENT - 1 :]


class AudioTask:
  """The audio encoders on the tracks and poses of encoded puppet clips.

  Args:
    config: training config with `model` (fields of AudioConfig) and `data` (path, validation).
  """

  def __init__(self, config: ConfigDict):
    self.config = config
    self.model_config = shipped.config_from_dict(AudioConfig, config.model.to_dict())

  def build(self, rngs: nnx.Rngs) -> AudioRegressor:
    """Encoders of `config.model` and their linear maps."""
    return AudioRegressor(self.model_config, rngs=rngs)

  def config_dict(self) -> dict:
    """AudioConfig as plain values."""
    return dataclasses.asdict(self.model_config)

  def dataset(self, seed: int) -> grain.MapDataset:
    """Every training clip once: a random stretch of two thirds of it."""
    return grain.MapDataset.source(RecordSource(self.config.data.path)).random_map(
      lambda clip, rng: example_from_clip(clip, rng), seed=seed
    )

  def loss(self, model: AudioRegressor, batch: dict, key: Array, step: Array):
    """Mean squared error in deviations; metrics: the share of the variance explained by field."""
    del key, step
    latents = (batch["pose"].shape[1] + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT
    error = jnp.square(model(batch["speak_audio"], batch["listen_audio"], latents) - batch["pose"])
    spread = jnp.var(batch["pose"], axis=(0, 1)) + 1e-6
    explained = 1.0 - error.mean((0, 1)) / spread
    named = {f"explained_{name}": explained[i] for i, name in enumerate(FIELDS)}
    return error.mean(), named

  def sample(self, model: AudioRegressor, workdir: str, step: int) -> dict[str, float]:
    """Share of the variance of each field that is explained on validation clips."""
    del workdir, step
    if not self.config.data.validation:
      return {}
    rng = np.random.default_rng(0)
    clips = RecordSource(self.config.data.validation)
    batch = stack([example_from_clip(clips[i], rng) for i in range(len(clips))])
    scores = self._validation_metrics(*nnx.split(model), batch)
    return {f"validation_{name}": float(value) for name, value in scores.items()}

  @functools.cached_property
  def _validation_metrics(self) -> Callable[..., dict]:
    def metrics_of(graphdef: nnx.GraphDef, state: nnx.State, batch: dict) -> dict:
      return self.loss(nnx.merge(graphdef, state), batch, None, None)[1]

    return jax.jit(metrics_of, static_argnums=0)


# Deviations of FIELDS in puppet clips, so that none of them rules the loss.
_DEVIATION = np.array([0.2, 0.2, 0.06, 0.3, 0.3, 0.25, 0.2], np.float32)


def example_from_clip(clip: EncodedClip, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """speak_audio, listen_audio [S] and pose [T, len(FIELDS)] of two thirds of a clip, in deviations.

  Raises ValueError for a clip without true pose.
  """
  if "pose" not in clip.truth:
    raise ValueError(f"clip {clip.clip_id!r}: truth has no pose: the audio encoders learn from it")
  latents = len(clip.latents)
  length = max(1, 2 * latents // 3)
  start = FRAMES_PER_LATENT * int(rng.integers(0, latents - length, endpoint=True))
  frames = FRAMES_PER_LATENT * (length - 1) + 1
  begin = audio_samples(start, clip.fps)
  heard = slice(begin, begin + audio_samples(frames, clip.fps))
  pose = clip.truth["pose"][start : start + frames, [POSE_INDEX[name] for name in FIELDS]]
  return {
    "speak_audio": clip.speak_audio[heard],
    "listen_audio": clip.listen_audio[heard],
    "pose": (pose / _DEVIATION).astype(np.float32),
  }


def load_encoders(folder: str | os.PathLike, lpm: LPM):
  """Fills the two audio encoders of a model from a weights folder (audio.safetensors), in place."""
  path = shipped.weights_file(folder, "audio")
  trained = shipped.load_built(path, AudioConfig, AudioRegressor)
  nnx.update(lpm.speak, nnx.state(trained.speak))
  nnx.update(lpm.listen, nnx.state(trained.listen))
