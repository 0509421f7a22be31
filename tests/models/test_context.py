"""Tokens apart over devices: every exchange, kernel, mask and layout gives one device's numbers."""

import subprocess
import sys

from tests.children import with_devices

EIGHT_DEVICES = """
import dataclasses, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from lpm_jax.models.attention import ChunkCausal, TeacherForcing
from lpm_jax.parallel import layout
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import tree_shardings
from tests.models import test_transformer as small

MASKS = {
  "all": None,
  "chunks": ChunkCausal(frames=2, sink=1, window=1),
  "teacher": TeacherForcing(ChunkCausal(frames=1, sink=1, window=1), frames=3),
}
STORED = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}
base = dataclasses.replace(small.TINY, heads=4, width=48)
state = nnx.state(small.make_model(base))
latents, timestep, conditions = small.make_inputs(frames=6)


def gradient(config, mask):
  graphdef = nnx.graphdef(small.make_model(config))

  def loss(state, latents, conditions):
    out = nnx.merge(graphdef, state)(latents, timestep, conditions, mask)
    return jnp.square(out).sum()

  return jax.jit(jax.value_and_grad(loss))(placed, latents, conditions)


def check(config, mask, shape, expected):
  global placed
  mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
  placed = jax.device_put(state, tree_shardings(state, mesh, STORED))
  with jax.set_mesh(mesh), layout.in_force(stored=STORED):
    found = gradient(config, mask)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
  ):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale, err_msg=str(path))


SHAPES = {
  "gather": {"data": 2, "fsdp": 2, "context": 2},
  "ulysses": {"context": 2, "tensor": 2, "fsdp": 2},
  "ring": {"fsdp": 2, "context": 4},
}
# A ring looks at pieces of a mask; the others have all the keys of a query in one place.
CASES = {"all": ("gather", "ring"), "chunks": ("ulysses", "ring"), "teacher": ("gather", "ring")}
for name, exchanges in CASES.items():
  placed, mask = state, MASKS[name]
  expected = gradient(base, mask)
  for exchange in exchanges:
    check(dataclasses.replace(base, exchange=exchange), mask, SHAPES[exchange], expected)
    print(name, exchange)

wide = dataclasses.replace(small.TINY, heads=2, width=256, attention="splash")
state = placed = nnx.state(small.make_model(wide))
for name, mask in MASKS.items():
  placed = state
  expected = gradient(dataclasses.replace(wide, attention="dense"), mask)
  if name == "teacher":
    check(wide, mask, {"fsdp": 1}, expected)
  check(dataclasses.replace(wide, exchange="ring"), mask, {"context": 2}, expected)
  print(name, "splash")
"""


def test_every_exchange_mask_and_kernel_equals_one_device():
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES],
    env=with_devices(8),
    capture_output=True,
    text=True,
  )
  assert len(done.stdout.splitlines()) == 9, done.stdout + done.stderr[-3000:]
