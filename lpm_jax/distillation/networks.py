"""The networks of a distillation in one module: who learns, who is frozen."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lpm_jax.models.attention import ChunkCausal, TeacherForcing
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.training.frozen import freeze


class Scores(nnx.Module):
  """Both scores of distribution matching.

  Attributes:
    teacher: the frozen Base.
    fake: follows what the student makes; it has the teacher's conditions.
  """

  def __init__(self, config: LPMConfig, *, frozen_dtype: DTypeLike | None, rngs: nnx.Rngs):
    self.teacher = freeze(LPM(config, rngs=rngs), frozen_dtype)
    self.fake = VideoTransformer(config.transformer, rngs=rngs)


class Distilled(nnx.Module):
  """What a task of distillation trains and what it needs for that.

  Attributes:
    student: the model that is exported, an LPM; its transformer learns.
    scores: teacher and fake score, where distributions are matched.
    backbone: frozen, where the student is the refiner.
  """

  def __init__(
    self,
    config: LPMConfig,
    *,
    scores: bool,
    backbone: bool,
    frozen_dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
  ):
    self.student = LPM(config, rngs=rngs)
    self.scores = Scores(config, frozen_dtype=frozen_dtype, rngs=rngs) if scores else None
    self.backbone = freeze(LPM(config, rngs=rngs), frozen_dtype) if backbone else None


def forced_velocity(
  model: VideoTransformer,
  causal: ChunkCausal,
  history: Array,
  level: Array,
  noisy: Array,
  timestep: Array,
  conditions: Conditions,
) -> Array:
  """Velocity of every chunk of a clip in one pass, each seeing those before it as they truly are.

  Args:
    history: what a chunk sees of the others [B, F, H, W, C]; the main picture, clean, comes first.
    level: timesteps of the history, [B, F].
    noisy: what it sees of itself; its main picture is not looked at.
    timestep: of `noisy`, [B, F].
    conditions: of all F frames (`heard.whole`).

  Returns fp32 [B, F, H, W, C].
  """
  frames = history.shape[1]
  twice = {
    name: jnp.concatenate([getattr(conditions, name)] * 2, axis=1) for name in ("speak", "listen")
  }
  return model(
    jnp.concatenate([history, noisy], axis=1),
    jnp.concatenate([level, timestep], axis=1),
    conditions.replace(**twice),
    causal=TeacherForcing(causal, frames),
  )[:, frames:]
