"""A small stream compiled by the TPU compiler, where libtpu is there."""

import pytest
from ml_collections import ConfigDict

from configs.lpm_17b import plan_stream
from lpm_jax.plan import chips, predict, stages
from lpm_jax.plan.isolated import isolated

pytest.importorskip("libtpu")


def small() -> ConfigDict:
  config = plan_stream.get_config()
  config.height, config.width, config.text_length = 128, 256, 16
  config.transformer.layers = 2
  return config


@pytest.mark.parametrize(
  ("apart", "codegen", "flags", "kinds"),
  [
    ("tensor", True, (), {"all-gather", "reduce-scatter"}),
    ("context", False, ("async",), {"all-gather", "all-to-all"}),
  ],
)
def test_a_small_stream_is_compiled_for_a_topology_that_is_not_there(apart, codegen, flags, kinds):
  config, chip = small(), chips.chip_of("v6e:2x4")
  config.apart, config.codegen, config.flags = apart, codegen, flags
  found = isolated(stages.plan_transformers, config.to_dict(), "v6e:2x4")
  assert [of.schedule.has_cycles() for of in found] == [codegen] * 2
  for of in found:
    time, moved = predict.stage_time(of, chip, 1e12)
    assert of.devices == 8 and of.kernel_flops > 0 and of.temporaries > 0
    assert kinds <= {one.kind for one in moved}
    assert any(one.asynchronous for one in moved if one.kind == "all-gather") == bool(flags)
    assert time.compute > 0 and time.exposed > 0
    assert time.kernels == pytest.approx(1e3 * of.kernel_flops / chip.flops / chip.chunk_share)
  assert found[0].kernel_flops == found[1].kernel_flops, "two evaluations each"


def test_a_stream_that_does_not_fit_is_refused_with_the_reason():
  config = small()
  config.references = 100_000
  with pytest.raises(stages.DoesNotFit, match="available HBM"):
    isolated(stages.plan_transformers, config.to_dict(), "v6e:2x4")
