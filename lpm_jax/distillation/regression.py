"""Stage 1: the causal backbone learns where a teacher's trajectory ends, or to denoise clips."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from data_pipelines.clip import EncodedClip
from data_pipelines.loader import ExampleConfig, trajectory_example
from lpm_jax.diffusion import flow
from lpm_jax.distillation import heard
from lpm_jax.distillation.networks import forced_velocity
from lpm_jax.distillation.online_task import OnlineTask, fill_student
from lpm_jax.distillation.trajectories import read_settings
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM, dropped_or
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.streaming.sampler import StreamSettings
from lpm_jax.training.base import CONDITIONS


class RegressionTask(OnlineTask):
  """Stage 1. `config.objective`: "ode", where clips carry trajectories, or "flow".

  "ode": a chunk, at a point of the teacher's trajectory drawn for it alone, is regressed on the
  trajectory's end. "flow": flow matching of clips, the chunks before given as they are. The levels
  of trajectories are those that their folder says or, for a plan without data, `config.levels`.
  """

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    if config.objective not in ("ode", "flow"):
      raise ValueError(f"objective: found {config.objective!r}, expected 'ode' or 'flow'")
    if config.objective == "ode":
      self.levels = self._levels_of(config)
      wanted = (*self.settings.backbone, self.settings.refiner, 0.0)
      if not set(self.settings.backbone) < set(self.levels) or self.levels[-1] != 0.0:
        raise ValueError(f"{config.data.path}: levels: found {self.levels}, expected {wanted}")

  @staticmethod
  def _levels_of(config: ConfigDict) -> tuple[float, ...]:
    """Those of the trajectories; ValueError where the folder and the config do not agree."""
    said = config.get("levels")
    if said and not pathlib.Path(config.data.path).exists():
      return tuple(said)
    found = read_settings(config.data.path).levels
    if said and tuple(said) != found:
      raise ValueError(f"{config.data.path}: levels: found {found}, the config has {tuple(said)}")
    return found

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """With trajectories for "ode"."""
    batch = super().abstract_batch(size)
    if self.config.objective == "ode":
      shape = (size, len(self.levels), *batch["latents"].shape[1:])
      batch["trajectory"] = jax.ShapeDtypeStruct(shape, jnp.float16)
    return batch

  def initialiser(self) -> Callable[[LPM], object]:
    """The student begins with the weights in the folder `config.student`."""
    return functools.partial(fill_student, self.config.student)

  def streaming(self, model: LPM) -> tuple[LPM, VideoTransformer]:
    """The student is both."""
    return model, model.transformer

  def window(
    self, clip: EncodedClip, rng: np.random.Generator, cut: ExampleConfig
  ) -> dict[str, np.ndarray]:
    """With the clip's trajectory for "ode"."""
    if self.config.objective == "flow":
      return super().window(clip, rng, cut)
    return trajectory_example(clip, rng, cut)

  def draw(self, batch: dict, key: Array) -> dict[str, Array]:
    """A timestep, or a point of the trajectory, of each chunk; noise of chunks and of histories.

    And for "flow" which conditions are dropped: such a model can teach, with guidance.
    """
    shape, settings = batch["latents"].shape, self.config.loss
    names = ("level", "noise", "history", *CONDITIONS)
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    drawn = {
      "noise": jax.random.normal(keys["noise"], shape),
      "history_noise": jax.random.normal(keys["history"], shape),
    }
    if self.config.objective == "ode":
      points = batch["trajectory"].shape[1] - 1  # the last one is the end
      return drawn | {
        "level": jax.random.randint(keys["level"], (shape[0], self.chunks), 0, points)
      }
    t = flow.sample_timesteps(keys["level"], shape[0] * self.chunks, settings.shift)
    drops = {
      f"drop_{name}": jax.random.bernoulli(keys[name], settings[f"drop_{name}"], shape[:1])
      for name in CONDITIONS
    }
    return drawn | {"level": t.reshape(shape[0], self.chunks)} | drops

  def loss(self, model: LPM, batch: dict, key: Array, step: Array):
    """Mean squared error over the chunks: of clean latents for "ode", of velocities for "flow"."""
    del step
    if "noise" not in batch:
      batch = {**batch, **self.draw(batch, key)}
    beginning, chunks = heard.streamed_conditions(model, batch, self.chunks, self.frames)
    conditions = heard.whole(beginning, chunks, self.frames)
    kept = {
      name: dropped_or(
        getattr(conditions, name), getattr(model, name).null, batch.get(f"drop_{name}")
      )
      for name in CONDITIONS
    }
    conditions = conditions.replace(**kept)
    per_frame = lambda x: jnp.repeat(x, self.frames, axis=1)  # noqa: E731
    picture = jnp.zeros((len(batch["level"]), 1))
    if self.config.objective == "ode":
      points, levels = batch["trajectory"].astype(jnp.float32), jnp.asarray(self.levels)
      clean = points[:, -1]
      place = per_frame(batch["level"])[:, None, :, None, None, None]
      noisy = jnp.take_along_axis(points[:, :, 1:], place, axis=1)[:, 0]
      noisy = jnp.concatenate([clean[:, :1], noisy], axis=1)
      t = jnp.concatenate([picture, levels[per_frame(batch["level"])]], axis=1)
    else:
      clean = batch["latents"].astype(jnp.float32)
      t = jnp.concatenate([picture, per_frame(batch["level"])], axis=1)
      noisy = flow.add_noise(clean, batch["noise"], t)
    velocity = forced(model, self.settings, clean, batch["history_noise"], noisy, t, conditions)
    if self.config.objective == "ode":
      return self.error(flow.velocity_to_clean(noisy, velocity, t), clean, clean), {}
    return self.error(velocity, batch["noise"] - clean, clean), {}

  def error(self, found: Array, wanted: Array, clean: Array) -> Array:
    """Mean squared error over the chunks; `loss.motion` of it counts where the clip moves."""
    weight = jnp.ones(clean.shape[:2]).at[:, 0].set(0.0)
    motion = self.config.loss.motion
    place = 1.0 - motion + motion * flow.motion_map(clean)
    return flow.flow_loss(found, wanted, weight, place)


def forced(
  model: LPM,
  settings: StreamSettings,
  clean: Array,
  noise: Array,
  noisy: Array,
  t: Array,
  conditions: Conditions,
) -> Array:
  """`forced_velocity` whose history is `clean`, noised as the stream's backbone sees it."""
  history, past = seen_history(settings, clean, noise)
  return forced_velocity(model.transformer, settings.causal, history, past, noisy, t, conditions)


def seen_history(settings: StreamSettings, clean: Array, noise: Array) -> tuple[Array, Array]:
  """Clips as the backbone sees its past, and their timesteps [B, F]; the picture is clean."""
  level = settings.backbone[-1] if settings.history is None else settings.history
  past = jnp.full(clean.shape[:2], level).at[:, 0].set(0.0)
  return flow.add_noise(clean, noise, past), past
