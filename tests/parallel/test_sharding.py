"""Meshes and logical rules on virtual devices of a process of their own."""

import subprocess
import sys

import jax
import pytest

from lpm_jax.parallel.mesh import make_mesh
from tests.children import with_devices

EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import partition_spec, shard_batch, tree_shardings
import numpy as np

mesh = make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
rules = {"embed": "fsdp", "mlp": "tensor", "wide": ("fsdp", "tensor")}
spec = lambda names, shape: partition_spec(names, shape, mesh, rules)
assert spec(("embed", "mlp"), (4, 6)) == P("fsdp", "tensor")
assert spec(("embed", "mlp"), (4, 5)) == P("fsdp", None)
assert spec(("embed", "embed"), (4, 4)) == P("fsdp", None)
assert spec(("wide", None), (4, 4)) == P(("fsdp", "tensor"), None)
assert spec(("mystery",), (4,)) == P(None)
assert spec(None, (4,)) == P()

param = nnx.Param(jnp.ones((4, 6)), out_sharding=("embed", "mlp"), eager_sharding=False)
shardings = tree_shardings({"p": param, "n": jnp.zeros(())}, mesh, rules)
assert shardings["p"].get_value().spec == P("fsdp", "tensor")
assert shardings["n"].spec == P()

rows = np.arange(8).reshape(8, 1)
batch = shard_batch({"x": rows}, mesh)["x"]
np.testing.assert_array_equal(batch, rows)
assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 1)}
"""


def test_rules_on_eight_devices():
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES], env=with_devices(8), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_one_device_takes_every_axis_as_one():
  mesh = make_mesh({"data": -1}, jax.devices()[:1])
  assert set(mesh.shape.values()) == {1}


@pytest.mark.parametrize("shape", [{"data": 3}, {"data": -1, "fsdp": 2}, {"data": -1, "fsdp": -1}])
def test_sizes_that_do_not_fit_are_named(shape: dict):
  with pytest.raises(ValueError, match="sharding.mesh: found .*expected a product of 1 devices"):
    make_mesh(shape, jax.devices()[:1])


def test_unknown_axis_is_named():
  with pytest.raises(ValueError, match="unknown axes .'modle'"):
    make_mesh({"modle": 1})
