import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.weights import shipped


class Net(nnx.Module):
  def __init__(self, hidden: int, *, rngs: nnx.Rngs):
    self.layers = nnx.List([nnx.Linear(2, hidden, rngs=rngs), nnx.Linear(hidden, 2, rngs=rngs)])
    self.scale = nnx.Variable(jnp.ones(3))
    self.dropout = nnx.Dropout(0.1, rngs=rngs)


def outputs(net: Net) -> np.ndarray:
  return net.layers[1](net.layers[0](jnp.ones((1, 2))))


def test_saved_weights_come_back_with_their_config(tmp_path):
  net = Net(4, rngs=nnx.Rngs(0))
  shipped.save_module(tmp_path / "net.safetensors", net, config={"hidden": 4}, dtype="float32")
  assert shipped.read_config(tmp_path / "net.safetensors") == {"hidden": 4}
  again = shipped.load_module(tmp_path / "net.safetensors", Net(4, rngs=nnx.Rngs(1)))
  np.testing.assert_array_equal(outputs(again), outputs(net))
  assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
  (tmp_path / "any").touch()
  assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_wrong_shape_names_the_tensor(tmp_path):
  path = tmp_path / "net.safetensors"
  shipped.save_module(path, Net(4, rngs=nnx.Rngs(0)), config={})
  with pytest.raises(shipped.WeightsError, match="net.safetensors: layers/0/bias: found shape"):
    shipped.load_module(path, Net(5, rngs=nnx.Rngs(1)))


def test_a_truncated_file_is_named(tmp_path):
  path = tmp_path / "net.safetensors"
  shipped.save_module(path, Net(4, rngs=nnx.Rngs(0)), config={})
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(shipped.WeightsError, match="net.safetensors"):
    shipped.load_module(path, Net(4, rngs=nnx.Rngs(1)))
