import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from lpm_jax.weights import packing, shipped
from lpm_jax.weights.layout import Entry
from lpm_jax.weights.parameters import open_parameters


class Net(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.dense = nnx.Linear(5, 3, rngs=rngs)
    self.norm = nnx.LayerNorm(3, rngs=rngs)


@pytest.fixture
def folder(tmp_path):
  net = Net(nnx.Rngs(0))
  net.dense.kernel[...] = net.dense.kernel[...] * jnp.array([1.0, 100.0, 0.0])
  shipped.save_module(tmp_path / "base.safetensors", net, config={"width": 3}, dtype="float32")
  return tmp_path


def test_eight_bits_are_off_by_half_a_step_of_their_column():
  x = np.random.default_rng(0).normal(size=(2, 7, 4)) * [1e-3, 1.0, 50.0, 0.0]
  integers, scale = packing.of_eight_bits(x)
  assert integers.dtype == np.int8 and scale.shape == (2, 1, 4)
  assert (np.abs(integers * scale - x) <= scale / 2 * (1 + 1e-5)).all()
  assert (np.abs(integers).max(axis=1)[:, :3] == 127).all()  # all of the range is used


def test_packed_weights_load_as_others_do(folder, tmp_path):
  packing.pack_weights(ConfigDict(dict(files=dict(base=str(folder)))), tmp_path / "packed")
  path = tmp_path / "packed" / "base.safetensors"
  assert shipped.read_config(path) == {"width": 3}
  want = shipped.load_module(folder / "base.safetensors", Net(nnx.Rngs(1)))
  found = shipped.load_module(path, nnx.eval_shape(lambda: Net(nnx.Rngs(2))))
  kernel = np.asarray(want.dense.kernel[...])
  step = np.abs(kernel).max(axis=0) / 127
  assert (np.abs(np.asarray(found.dense.kernel[...]) - kernel) <= step / 2 + 1e-9).all()
  assert (np.asarray(found.dense.kernel[...]) != kernel).any()  # it did go through eight bits
  np.testing.assert_array_equal(found.norm.scale[...], want.norm.scale[...])


def test_packed_weights_are_exported_layer_by_layer(folder, tmp_path):
  packing.pack_weights(ConfigDict(dict(files=dict(base=str(folder)))), tmp_path / "packed")
  read = open_parameters(tmp_path / "packed", "transformer", average=True)
  whole = read(Entry("", "dense/kernel"))
  np.testing.assert_array_equal(read(Entry("", "dense/kernel", index=1)), whole[1])
  assert whole.dtype == np.float32 and np.abs(whole).max() > 1.0


def test_what_is_packed_is_not_packed_again(folder, tmp_path):
  packing.pack_weights(ConfigDict(dict(files=dict(base=str(folder)))), tmp_path / "packed")
  again = ConfigDict(dict(files=dict(base=str(tmp_path / "packed"))))
  with pytest.raises(shipped.WeightsError, match="dense/kernel: found eight bits"):
    packing.pack_weights(again, tmp_path / "twice")
  assert not (tmp_path / "twice").exists()
