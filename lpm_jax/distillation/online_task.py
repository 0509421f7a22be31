"""What all stages of distillation are: tasks on clips that are cut into chunks."""

import abc

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.loader import example_from_clip, stack
from data_pipelines.records import RecordSource
from lpm_jax.distillation import samples
from lpm_jax.models.lpm import LPM
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.streaming.sampler import StreamSettings
from lpm_jax.training.base import VALIDATION_SEED, BaseTask, complete
from lpm_jax.training.samples import write_pairs
from lpm_jax.weights import loading, shipped
from lpm_jax.weights.shipped import config_from_dict


class OnlineTask(BaseTask, abc.ABC):
  """What the stages share: clips cut into chunks, streamed conditions, weights to start from.

  Args:
    config: that of BaseTask, with `stream` (StreamSettings), `data.chunks`, and `student` and
      `teacher`, folders of weights.

  Raises ValueError for stages whose windows are not the picture and `data.chunks` chunks from the
  beginning of a clip.
  """

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    self.settings = config_from_dict(StreamSettings, config.stream.to_dict())
    self.chunks, self.frames = config.data.chunks, self.settings.causal.frames
    wanted = 1 + self.chunks * self.frames
    for stage in self.curriculum:
      found = stage.latent_frames or config.data.latent_frames
      if found != wanted or stage.extension or stage.random_start or stage.twins:
        raise ValueError(
          f"stage {stage.name!r}: expected windows of {wanted} latents from the beginning of clips"
        )

  @abc.abstractmethod
  def streaming(self, model: nnx.Module) -> tuple[LPM, VideoTransformer]:
    """Encoders with the backbone, and the refiner, of the streams that show how far training is."""

  def sample(self, model: nnx.Module, workdir: str, step: int) -> dict[str, float]:
    """Streams the validation clips: how far from them in latents, and videos of the first ones.

    The distance falls while a stream learns to follow what it is given, and grows where it drifts.
    `config.evaluation` has `sample_clips`, the number of videos, and `vae`, a weights folder.
    """
    if not self.config.data.validation:
      return {}
    source, settings = RecordSource(self.config.data.validation), self.config.evaluation
    cut, rng = self._example_config(self.curriculum[-1]), np.random.default_rng
    clips = ((i, self.with_features(source[i])) for i in range(len(source)))
    examples = [
      complete(example_from_clip(clip, rng((VALIDATION_SEED, i)), cut), clip, self.model_config)
      for i, clip in clips
    ]
    vae, size = loading.load_vae(settings.vae), min(self.config.batch_size, len(examples))
    apart = []
    for first in range(0, len(examples) - size + 1, size):
      batch = stack(examples[first : first + size])
      latents, video = samples.stream_clips(*self.streaming(model), vae, self.settings, batch)
      apart.append(np.square(np.asarray(latents)[:, 1:] - batch["latents"][:, 1:]).mean())
      if first == 0 and settings.sample_clips:
        shown = {name: x[: settings.sample_clips] for name, x in batch.items()}
        fps = self.model_config.audio.fps
        write_pairs(video[: settings.sample_clips], shown, vae, workdir, step, fps)
    return {"validation_distance": float(np.mean(apart))}


def fill_student(folder: str, module: nnx.Module):
  """Fills a student from the folder's backbone where there is one, or else from its Base."""
  name = "backbone" if shipped.has_weights(folder, "backbone") else "base"
  loading.initialiser(folder, name)(module)
