"""Tiny runs of the stages, for tests and the processes that they start."""

import functools
import pathlib

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from configs.puppets import online
from data_pipelines.loader import stack
from lpm_jax.distillation.trajectories import TrajectorySettings
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.training import loop
from lpm_jax.training.task import make_task

SETTINGS = TrajectorySettings(
  levels=(1.0, 0.757, 0.522, 0.0),
  causal=ChunkCausal(frames=3, sink=1, window=1),
  chunks=2,
  slots=2,
)


def config_of(folder: pathlib.Path, stage: str) -> ConfigDict:
  c = online.get_config(f"{stage},tiny")
  clips = "trajectories" if c.get("objective") == "ode" else "train"
  c.data.path, c.data.validation = str(folder / clips), ""
  c.data.height = c.data.width = 32  # clips of 4 x 4 latents
  c.student = c.teacher = c.backbone = str(folder / "weights")
  return c


@functools.cache
def batch_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  dataset = make_task(config_of(folder, "flow")).dataset(0)
  return stack([dataset[i] for i in range(2)])


def model_of(config: ConfigDict) -> tuple[loop.Setup, nnx.Module]:
  setup = loop.prepare(config)
  return setup, nnx.merge(setup.graphdef, setup.state.params, setup.state.rest)
