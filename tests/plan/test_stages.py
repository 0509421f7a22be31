"""A small stream compiled by the TPU compiler, where libtpu is there."""

import subprocess
import sys

import pytest

SMALL = """
from configs.lpm_17b import plan_stream
from lpm_jax.plan import chips, stages

config = plan_stream.get_config()
config.height, config.width, config.text_length = 128, 256, 16
config.transformer.layers = 2
devices = chips.devices_of("v6e:2x4")
for stage in ("backbone", "refiner"):
  found = stages.plan_stage(config, stage, devices)
  assert found.devices == 8 and found.cycles > 0 and found.kernel_flops > 0
  kinds = {moved.kind for moved in found.traffic}
  assert {"all-gather", "reduce-scatter"} <= kinds, kinds
config.references = 100_000
try:
  stages.plan_stage(config, "refiner", devices)
except stages.DoesNotFit as error:
  print(error)
"""


def test_a_small_stream_is_compiled_for_a_topology_that_is_not_there():
  pytest.importorskip("libtpu")
  done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "available HBM" in done.stdout, done.stdout
