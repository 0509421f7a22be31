"""Tokens apart over a tensor group: a chunk, its cache and gradients stay as they are."""

import subprocess
import sys

from tests.children import with_devices

EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from lpm_jax.models import spread
from lpm_jax.models.layers import Linear
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import tree_shardings
from tests.models import test_cache as small
from tests.models.test_transformer import make_model, randomise


def equal(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


model = randomise(make_model(), jax.random.key(1))
latents, timestep, conditions = small.make_stream()
cache = model.remember(latents[:, :1], small.of_frames(conditions, 0, 1))
stop = 1 + small.CAUSAL.frames
given = small.of_frames(conditions, 1, stop, small.PAST).without_references()
graphdef, state = nnx.split(model)


@jax.jit
def extend(state, cache):
  extended = nnx.merge(graphdef, state).extend
  return extended(latents[:, 1:stop], timestep[:, 1:stop], given, [cache], jnp.int32(1))


expected = extend(state, cache)
for tensor in (2, 3):  # two devices share the tokens; three do not divide them
  mesh = make_mesh({"tensor": tensor}, jax.devices()[:tensor])
  placed = jax.device_put(state, tree_shardings(state, mesh, {"heads": "tensor", "mlp": "tensor"}))
  with jax.set_mesh(mesh):
    equal(extend(placed, cache), expected)
    traced = str(jax.make_jaxpr(extend)(placed, cache))
    assert ("reduce_scatter" in traced) == (tensor == 2)
print("a chunk")

rngs = nnx.Rngs(0)
into = [Linear(6, 8, axes=(None, "mlp"), dtype="float32", rngs=rngs) for _ in range(2)]
back = [Linear(8, 6, axes=("mlp", None), dtype="float32", rngs=rngs) for _ in range(2)]
graphdef, state = nnx.split(nnx.List(into + back))
x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))


@jax.jit
def gradient(state, x):
  def loss(state, x):
    maps = list(nnx.merge(graphdef, state))
    inner = [jnp.tanh(y) for y in spread.gather_into(spread.spread(x), maps[:2])]
    return jnp.square(spread.scatter_from(inner, maps[2:])).sum()

  return jax.grad(loss, argnums=(0, 1))(state, x)


expected = gradient(state, x)
with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
  equal(gradient(state, x), expected)
print("gradients")
"""


def test_spread_equals_one_device():
  result = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES],
    env=with_devices(8),
    capture_output=True,
    text=True,
  )
  assert result.stdout.split("\n")[:2] == ["a chunk", "gradients"], result.stderr[-3000:]
