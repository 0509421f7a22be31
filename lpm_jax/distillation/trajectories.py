"""Trajectories of a frozen teacher: what the causal backbone learns first (LPM 1.0, ODE init).

For every clip the teacher's probability-flow ODE is solved from noise, under guidance, by first
order on one shifted grid, and the points at a few levels are stored with the clip. The student
predicts the last point from each of the others.
"""

import dataclasses
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.clip import Trajectory
from data_pipelines.loader import ExampleConfig
from lpm_jax.diffusion import flow, solvers
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.distillation import shards
from lpm_jax.distillation.networks import forced_velocity
from lpm_jax.distillation.shards import PerClip, Work, clip_noise, write_made
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.parallel.sharding import Rules
from lpm_jax.training.samples import encode_window
from lpm_jax.weights import shipped

TEACHERS = ("bidirectional", "causal")
SETTINGS_FILE = "trajectories.json"
_NOISE, _HISTORY = range(2)  # what a clip's key is folded with


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
  """How trajectories are made.

  Attributes:
    levels: timesteps of the points, falling from 1; 0 is added where it is missing.
    steps: Euler steps. The grid contains the levels, see `solvers.grid_through`.
    shift: the one timestep shift, that of the teacher's training.
    text_guidance, audio_guidance: strengths; 1 and 1 need a third of the work.
    causal: latents of a chunk, for a causal teacher also sink and window.
    chunks: chunks after the picture; clips that are shorter are left out, longer ones cut.
    slots: reference slots; a clip's references fill as many as they can.
    teacher: "bidirectional": the whole window at once. "causal": each chunk sees itself and, of the
      chunks before it, the clip's own latents, as a causal model is trained (teacher forcing).
    history: timestep of those latents, in [0, 1).
    seed: of the noise and of the order of references.
  """

  levels: tuple[float, ...] = (1.0, 0.757, 0.522, 0.0)
  steps: int = 40
  shift: float = 2.5
  text_guidance: float = 1.5
  audio_guidance: float = 1.5
  causal: ChunkCausal = ChunkCausal()
  chunks: int = 3
  slots: int = 6
  teacher: str = "bidirectional"
  history: float = 0.1
  seed: int = 0

  def __post_init__(self):
    levels = tuple(map(float, self.levels))
    falling = all(a > b for a, b in zip(levels, levels[1:], strict=False))
    if not levels or levels[0] != 1.0 or not falling or levels[-1] < 0.0:
      raise ValueError(f"levels: found {levels}, expected timesteps in [0, 1] that fall from 1")
    object.__setattr__(self, "levels", levels if levels[-1] == 0.0 else (*levels, 0.0))
    if not self.shift > 0.0:
      raise ValueError(f"shift: found {self.shift}, expected a positive number")
    if self.chunks < 1 or self.slots < 0:
      raise ValueError(
        f"chunks, slots: found {self.chunks}, {self.slots}, expected at least 1 and 0"
      )
    if self.teacher not in TEACHERS:
      raise ValueError(f"teacher: found {self.teacher!r}, expected one of {TEACHERS}")
    if not 0.0 <= self.history < 1.0:
      raise ValueError(f"history: found {self.history}, expected a timestep in [0, 1)")
    self.times()

  @property
  def latents(self) -> int:
    """Latent frames of a trajectory: the picture and whole chunks."""
    return 1 + self.chunks * self.causal.frames

  def times(self) -> np.ndarray:
    """Grid of the solver, fp64 [steps + 1]."""
    return solvers.grid_through(self.levels, self.steps, self.shift)

  def cut(self, text_length: int) -> ExampleConfig:
    """The clip from its beginning, with all the references that find a slot."""
    every = dict(global_reference=1.0, extra_references=1.0, filled=1.0)
    return ExampleConfig(self.latents, self.slots, text_length, **every)


class CausalTeacher:
  """An LPM that makes chunks after given ones: noisy latents in, their velocity out.

  Args:
    model: the weights.
    history: the clip's latents [B, F, H, W, C], noised to `level`.
    level: timesteps of the history [B, F].
    causal: chunks, sink and window.
  """

  def __init__(self, model: LPM, history: Array, level: Array, causal: ChunkCausal):
    self._model, self._history, self._level, self._causal = model, history, level, causal
    self.null_text, self.null_audio = model.null_text, model.null_audio

  def __call__(self, latents: Array, timestep: Array, conditions: Conditions) -> Array:
    """Velocity [n B, F, H, W, C]; under guidance the batch is there n times."""
    times = len(latents) // len(self._history)
    history = jnp.tile(self._history, (times, 1, 1, 1, 1))
    level, model = jnp.tile(self._level, (times, 1)), self._model.transformer
    return forced_velocity(model, self._causal, history, level, latents, timestep, conditions)


def trajectory_points(
  model: LPM, batch: dict[str, Array], index: Array, settings: TrajectorySettings
) -> Array:
  """Points of a batch of `loader.example_from_clip`, fp32 [P, B, F, H, W, C]; the picture is clean.

  Args:
    model: the teacher.
    batch: windows of `settings.latents` from the beginning of their clips.
    index: int32 [B], of each clip in the data; its noise depends on it and the seed alone.
    settings: levels, grid, guidance and kind of teacher.
  """
  latents = batch["latents"].astype(jnp.float32)
  conditions = encode_window(model, batch)
  picture = jnp.broadcast_to(jnp.arange(latents.shape[1]) < 1, latents.shape[:2])
  noise = clip_noise(settings.seed, index, _NOISE, latents.shape[1:])
  teacher = model
  if settings.teacher == "causal":
    level = jnp.where(picture, 0.0, settings.history)
    other = clip_noise(settings.seed, index, _HISTORY, latents.shape[1:])
    history = flow.add_noise(latents, other, level)
    teacher = CausalTeacher(model, history, level, settings.causal)
  velocity = guided_velocity(teacher, conditions, settings.text_guidance, settings.audio_guidance)
  times = settings.times()
  return solvers.euler_points(velocity, noise, latents, picture, times, settings.levels)


class Teacher(PerClip):
  """`trajectory_points` float16 [B, P, F, H, W, C] on the devices of a mesh, see `PerClip`."""

  def __init__(self, model: LPM, settings: TrajectorySettings, mesh: Mesh, rules: Rules):
    def make(model: LPM, batch: dict[str, Array], index: Array) -> Array:
      return jnp.moveaxis(trajectory_points(model, batch, index, settings), 0, 1)

    super().__init__(model, make, mesh, rules)


def write_trajectories(config: ConfigDict, workdir: str | os.PathLike):
  """`lpm distill` of the task "trajectories": a record with `trajectory` for every clip.

  Writes shards and trajectories.json into the workdir; see `shards.write_made` for config and
  errors. `config.trajectory` has fields of TrajectorySettings.
  """
  settings = shipped.config_from_dict(TrajectorySettings, config.trajectory.to_dict())
  rules = config.sharding.rules
  work = Work(
    settings_file=SETTINGS_FILE,
    about={"trajectory": dataclasses.asdict(settings)},
    label="trajectories",
    latents=settings.latents,
    cut=lambda model: settings.cut(model.text.length),
    seed=settings.seed,
    maker=lambda model, mesh: Teacher(model, settings, mesh, rules),
    record=lambda clip, example, points: Trajectory.of(clip, points),
  )
  write_made(config, workdir, work)


def read_settings(folder: str | os.PathLike) -> TrajectorySettings:
  """How the trajectories of a folder were made. Raises ValueError where that is not said."""
  values = shards.read_settings(folder, SETTINGS_FILE)
  if "trajectory" not in values:
    raise ValueError(f"{pathlib.Path(folder) / SETTINGS_FILE}: trajectory: missing")
  return shipped.config_from_dict(TrajectorySettings, values["trajectory"])
