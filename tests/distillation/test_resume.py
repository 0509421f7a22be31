"""Every stage ends bit for bit where it would have, killed or not."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from configs.puppets import online
from lpm_jax.models.lpm import LPM
from lpm_jax.training import loop
from lpm_jax.training.task import make_task
from lpm_jax.weights import shipped
from tests.children import with_devices
from tests.distillation.stages import config_of
from tests.training.test_base import rows_of

KILLED = """
import os, pathlib, signal, sys
from lpm_jax.training import loop
from tests.distillation.stages import config_of
save = loop._Run._save

def killed(run, done, *args, **kwargs):
  save(run, done, *args, **kwargs)
  if done == 3:
    run.checkpoints.wait()
    os.kill(os.getpid(), signal.SIGKILL)

loop._Run._save = killed
loop.train(config_of(pathlib.Path(sys.argv[1]), sys.argv[3]), sys.argv[2])
"""


STAGES = [stage for stage in online.STAGES if stage not in online.OF_CLIPS]  # tasks of the others


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_resumes_bit_for_bit_and_exports_its_student(folders, tmp_path, stage):
  config = config_of(folders, stage)
  whole = loop.train(config, str(tmp_path / "whole"))
  words = [sys.executable, "-c", KILLED, str(folders), str(tmp_path / "parts"), stage]
  ended = subprocess.run(words, env=with_devices(1))
  assert ended.returncode == -signal.SIGKILL
  assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["2"]
  parts = loop.train(config, str(tmp_path / "parts"))
  assert int(parts.step) == int(whole.step) == config.steps
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_array_equal(a, b)
  model = LPM(make_task(config).model_config, rngs=nnx.Rngs(5))
  shipped.load_module(tmp_path / "whole" / "weights" / f"{config.export}.safetensors", model)
  assert all(np.isfinite(row["loss"]) for row in rows_of(tmp_path / "whole"))
