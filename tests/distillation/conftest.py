"""What the stages are tested with."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from flax import nnx

from data_pipelines.clip import Trajectory
from data_pipelines.records import write_records
from lpm_jax.models.lpm import LPM
from lpm_jax.training.task import make_task
from lpm_jax.weights import shipped
from tests.distillation.stages import SETTINGS, config_of
from tests.training.test_base import encoded_clip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Clips, trajectories, and weights of a Base and of a backbone that differ."""
  folder = tmp_path_factory.mktemp("online")
  write_records(folder / "train" / "0.array_record", map(encoded_clip, range(8)))
  rng = np.random.default_rng(0)
  made = [
    Trajectory.of(encoded_clip(i), rng.normal(size=(4, 7, 4, 4, 16)).astype(np.float16))
    for i in range(4)
  ]
  write_records(folder / "trajectories" / "0.array_record", made)
  values = json.dumps({"trajectory": dataclasses.asdict(SETTINGS)})
  (folder / "trajectories" / "trajectories.json").write_text(values)
  c = config_of(folder, "flow")
  for seed, name in enumerate(("base", "backbone")):
    model = LPM(make_task(c).model_config, rngs=nnx.Rngs(seed))
    shipped.save_module(folder / "weights" / f"{name}.safetensors", model, config={})
  return folder
