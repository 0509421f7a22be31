"""`lpm prefer`: the steps from a model's videos to pairs of a better and a worse one."""

import importlib
import os

from ml_collections import ConfigDict

TASKS = {
  "candidates": "lpm_jax.preference.candidates.write_candidates",
  "pairs": "lpm_jax.preference.pairs.write_pairs",
  "page": "lpm_jax.preference.page.write_judging_page",
  "instrument": "lpm_jax.preference.instrument.measure_instrument",
}


def prefer(config: ConfigDict, workdir: str | os.PathLike):
  """Runs the task that a config names; ValueError for another one."""
  if config.task not in TASKS:
    raise ValueError(f"task: found {config.task!r}, expected one of {sorted(TASKS)}")
  module, _, name = TASKS[config.task].rpartition(".")
  getattr(importlib.import_module(module), name)(config, workdir)
