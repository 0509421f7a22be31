"""A stream on eight devices, sharded and in stages, equals the stream on one."""

import subprocess
import sys

from tests.children import with_devices

EIGHT_DEVICES = """
import jax, numpy as np
from flax import nnx
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import Placement
from lpm_jax.streaming.pipeline import Pipeline
from tests.streaming import test_sampler as small

online = small.online.__wrapped__()
picture, first, chunks = small.make_conditions()
graphdef, model = nnx.split(online)
step = jax.jit(lambda model, *x: nnx.merge(graphdef, model).step(*x))


def begun():
  return online.begin(picture, first, jax.random.key(5))[0]


def run(state, step):
  made = []
  for i in range(small.CHUNKS):
    state, *outputs = step(state, small.chunk(chunks, i))
    made.append(outputs)
  return state, [[np.asarray(x) for x in outputs] for outputs in made]


def equal(found, expected):
  for i, (some, others) in enumerate(zip(found, expected, strict=True)):
    for one, other in zip(some, others, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5, err_msg=f"chunk {i}")


_, expected = run(begun(), lambda *x: step(model, *x))
rules = (("batch", "data"), ("heads", "tensor"), ("mlp", "tensor"), ("tokens", "context"))

# one mesh of eight for everything
place = Placement(make_mesh({"data": 2, "context": 2, "tensor": 2}), rules)
whole = place.put_module(model)
axes = begun().axes()


@jax.jit
def sharded_step(model, state, conditions):
  state, latents, video = nnx.merge(graphdef, model).step(state, conditions)
  return place.keep(state, axes), latents, video


state, found = run(place.put(begun(), axes), lambda *x: sharded_step(whole, *x))
equal(found, expected)
assert sharded_step._cache_size() <= 2
shard = state.backbone.key.addressable_shards[0].data
assert state.backbone.key.size == 8 * shard.size, (state.backbone.key.shape, shard.shape)
query = whole["backbone"]["pairs"]["speak"]["self_attention"]["query"]["kernel"].get_value()
assert query.size == 2 * query.addressable_shards[0].data.size

# three groups of devices, each stage on its own
devices = jax.devices()
groups = devices[:4], devices[4:6], devices[6:7]
places = [
  Placement(make_mesh({"data": -1, "tensor": min(2, len(group))}, list(group)), rules)
  for group in groups
]
pipeline = Pipeline(online, places)
state, staged = run(pipeline.place(begun()), pipeline.step)
equal(staged, expected)
for part, group in zip((state.backbone, state.refiner, state.decoder), groups, strict=True):
  for leaf in jax.tree.leaves(part):
    assert leaf.sharding.device_set == set(group)

# the same with weights that come to tokens
rules = (("heads", "context"), ("mlp", "context"))
groups = devices[:2], devices[2:4], devices[:1]
places = [Placement(make_mesh({"context": -1}, list(group)), rules) for group in groups]
to_tokens = Pipeline(online, places)
_, gathered = run(to_tokens.place(begun()), to_tokens.step)
equal(gathered, expected)

# the stages one after the other: waiting for each changes no bit
def waiting(state, conditions):
  return jax.block_until_ready(pipeline.step(state, conditions))


_, in_turn = run(pipeline.place(begun()), waiting)
for some, others in zip(staged, in_turn, strict=True):
  for one, other in zip(some, others, strict=True):
    np.testing.assert_array_equal(one, other)
"""


def test_sharded_and_in_stages_equal_one_device():
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES], env=with_devices(8), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
