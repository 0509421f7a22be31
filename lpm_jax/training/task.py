"""What a thing that can be trained provides; the loop does the rest."""

import importlib
from typing import Protocol

import grain
import jax
from flax import nnx
from ml_collections import ConfigDict

TASKS = {
  "autoencoder": "lpm_jax.training.autoencoder.AutoencoderTask",
  "probe": "lpm_jax.evaluation.probe_task.ProbeTask",
  "audio": "lpm_jax.training.audio.AudioTask",
  "base": "lpm_jax.training.base.BaseTask",
  "preference": "lpm_jax.training.preference.PreferenceTask",
  "regression": "lpm_jax.distillation.regression.RegressionTask",
  "refiner_start": "lpm_jax.distillation.refiner_start.RefinerStartTask",
  "off_policy": "lpm_jax.distillation.tasks.OffPolicyTask",
  "on_policy": "lpm_jax.distillation.tasks.OnPolicyTask",
  "refiner": "lpm_jax.distillation.tasks.RefinerTask",
}


class Task(Protocol):
  """A model, its data and its loss.

  A task may also have:
    stages(seed) -> [(steps, dataset)]: endless, shuffled datasets in place of `dataset`;
    learning_rates() -> [(steps, [(path regex, factor), ...])]: factors stage by stage;
    optimiser() -> the optimiser, in place of that of `config.optimiser`;
    initialiser() -> fill(model) | None: puts weights trained before into the fresh model, in place;
    draw(batch, key) -> {name: [B, ...]}: random numbers of each example, added to the batch, so
      that a batch cut into parts has the same ones as a whole one;
    finish(model): last changes to the averaged model before it is exported;
    exported(model) -> the part of it that is exported; by default all of it;
    shares() -> {scope: share}: how often branches in scopes of that name are taken, for plans;
    sample(model, workdir, step) -> metrics | None: writes samples of the averaged model.
  """

  def build(self, rngs: nnx.Rngs) -> nnx.Module:
    """The model, freshly initialised; parameters may name their axes (`out_sharding`)."""

  def loss(
    self, model: nnx.Module, batch: dict, key: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, dict]:
    """Scalar loss, averaged over the batch, and a dict of scalar metrics."""

  def dataset(self, seed: int) -> grain.MapDataset:
    """Single examples (dicts of numpy arrays), finite, neither shuffled nor batched."""

  def config_dict(self) -> dict:
    """What rebuilds the model; stored with the exported weights."""


def make_task(config: ConfigDict) -> Task:
  """The task that `config.task` names: a key of TASKS or the dotted path of a class.

  Raises ValueError for a name that is neither.
  """
  module, _, name = TASKS.get(config.task, config.task).rpartition(".")
  if not module:
    raise ValueError(f"task: found {config.task!r}, expected one of {sorted(TASKS)}")
  return getattr(importlib.import_module(module), name)(config)
