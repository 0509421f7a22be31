"""Trains the toy task in its own process: `child.py WORKDIR [name=value ...]` -> WORKDIR.npz."""

import json
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from lpm_jax.training import loop
from tests.training.toy import toy_config


def result_of(config: ConfigDict, workdir: str) -> dict[str, np.ndarray]:
  """Trains; returns every array of the state and of the next batch, by name."""
  state = loop.train(config, workdir)
  arrays = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  batches = loop.make_batches(loop.make_task(config), config)
  checkpoints = loop.Checkpoints(workdir, config.to_json(), keep=3)
  batches.set_state(checkpoints.restore(state).data)
  checkpoints.close()
  return arrays | {f"next batch {name}": rows for name, rows in next(batches).items()}


if __name__ == "__main__":
  workdir, *words = sys.argv[1:]
  changes = {name: json.loads(value) for name, value in (word.split("=", 1) for word in words)}
  np.savez(f"{workdir}.npz", **result_of(toy_config(**changes), workdir))
