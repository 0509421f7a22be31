"""A small stream compiled by the TPU compiler, where libtpu is there."""

import subprocess
import sys

import pytest

SMALL = """
from configs.lpm_17b import plan_stream
from lpm_jax.plan import chips, predict, stages

config = plan_stream.get_config()
config.height, config.width, config.text_length = 128, 256, 16
config.transformer.layers = 2
devices = chips.devices_of("v6e:2x4")
chip = chips.chip_of("v6e:2x4")
found = stages.plan_transformers(config, devices)
times = [predict.stage_time(of, chip, 1e12) for of in found]
for of, time in zip(found, times, strict=True):
  assert of.devices == 8 and of.kernel_flops > 0
  kinds = {moved.kind for moved in of.traffic}
  assert {"all-gather", "reduce-scatter"} <= kinds, kinds
  assert time.compute > 0 and time.exposed > 0
  assert abs(time.kernels - 1e3 * of.kernel_flops / chip.flops / chip.chunk_share) < 1e-6
assert found[0].kernel_flops == found[1].kernel_flops, "two evaluations each"
config.references = 100_000
try:
  stages.plan_transformers(config, devices)
except stages.DoesNotFit as error:
  print(error)
"""


def test_a_small_stream_is_compiled_for_a_topology_that_is_not_there():
  pytest.importorskip("libtpu")
  done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "available HBM" in done.stdout, done.stdout
