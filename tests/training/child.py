"""Trains in its own process: `child.py WORKDIR [name=value ...]`; the toy task, or base=FOLDER.

Alone, the toy task leaves every array of the state and of the next batch in WORKDIR.npz.
"""

import json
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.puppets import base
from lpm_jax.training import distributed, loop
from tests.training.toy import toy_config


def base_config(folder: str, **mesh: int) -> ConfigDict:
  """Two steps of the tiny Base, eight clips each, without samples."""
  c = base.get_config("tiny")
  c.data.path, c.data.validation = f"{folder}/train", f"{folder}/validation"
  c.steps, c.batch_size = 2, 8
  c.sharding.mesh = mesh
  c.evaluation.sample_every = 0
  c.watchdog.update(stall_seconds=150.0, lost_seconds=120.0)  # of CPUs that have other work too
  return c


def result_of(config: ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Trains; returns every array of the state and of the next batch, by name."""
  loop.train(config, workdir)
  return saved(config, workdir)


def saved(config: ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint and of the batch after it, by name."""
  state = loop.prepare(config).state
  checkpoints = loop.Checkpoints(workdir, config.to_json(), keep=3)
  restored = checkpoints.restore(state)
  checkpoints.close()
  arrays = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state)
  }
  batches = loop.make_batches(loop.make_task(config), config)
  batches.set_state(restored.data)
  return arrays | {f"next batch {name}": rows for name, rows in next(batches).items()}


if __name__ == "__main__":
  workdir, *words = sys.argv[1:]
  changes = {name: json.loads(value) for name, value in (word.split("=", 1) for word in words)}
  folder = changes.pop("base", None)
  config = base_config(folder, data=2, fsdp=-1) if folder else toy_config(**changes)
  distributed.start(config.get("distributed"))
  if jax.process_count() > 1:
    loop.train(config, workdir)
  else:
    np.savez(f"{workdir}.npz", **result_of(config, workdir))
