"""A tiny regression task: enough to exercise every part of the loop in seconds."""

import itertools
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict


class Toy(nnx.Module):
  """Two layers with logical axis names and one variable that is no parameter."""

  def __init__(self, rngs: nnx.Rngs):
    init = nnx.initializers.lecun_normal()
    named = {"eager_sharding": False}
    self.up = nnx.Param(init(rngs.params(), (8, 16)), out_sharding=("embed", "mlp"), **named)
    self.bias = nnx.Param(jnp.zeros(16), out_sharding=("mlp",), **named)
    self.down = nnx.Param(init(rngs.params(), (16, 4)), out_sharding=("mlp", "embed"), **named)
    self.seen = nnx.BatchStat(jnp.zeros(()))

  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ self.up[...] + self.bias[...]) @ self.down[...]


class ToyTask:
  """y = sin(x A), with noise drawn per index and in the step.

  `config.poison`: a step that is NaN; `pace`: seconds that a sample takes; `hang`: in the process
  of this index, reading never ends after 100 examples; `bad_rows`: from step `bad_from` on, a batch
  with one of these rows has its loss multiplied by `bad_scale` (NaN).
  """

  def __init__(self, config: ConfigDict):
    self.config = config

  def build(self, rngs: nnx.Rngs) -> Toy:
    return Toy(rngs)

  def dataset(self, seed: int) -> grain.MapDataset:
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    y = np.sin(x @ np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32))

    read = itertools.count()

    def example(i: int, rng: np.random.Generator) -> dict:
      if self.config.get("hang", -1) == jax.process_index() and next(read) >= 100:
        time.sleep(1000)
      return {"x": x[i] + 0.01 * rng.normal(size=8).astype(np.float32), "y": y[i], "i": np.int32(i)}

    return grain.MapDataset.range(50).random_map(example, seed=seed)

  def loss(self, model: Toy, batch: dict, key: jax.Array, step: jax.Array):
    noise = self.config.get("noise", 0.0) * jax.random.normal(key, batch["x"].shape)
    error = jnp.square(model(batch["x"] + noise) - batch["y"]).mean()
    model.seen[...] += batch["x"].shape[0]
    error = jnp.where(step == self.config.get("poison", -1), jnp.nan, error)
    bad = jnp.isin(batch["i"], jnp.asarray(self.config.get("bad_rows", (-1,)))).any()
    bad &= step >= self.config.get("bad_from", 0)
    error = error * jnp.where(bad, self.config.get("bad_scale", jnp.nan), 1.0)
    return error, {"rmse": jnp.sqrt(error)}

  def sample(self, model: Toy, workdir: str, step: int):
    time.sleep(self.config.get("pace", 0.0))

  def config_dict(self) -> dict:
    return {"toy": 1}


def toy_config(**changes: object) -> ConfigDict:
  """Thirty steps on one device; keyword arguments with dots as double underscores."""
  c = ConfigDict()
  c.task = "tests.training.toy.ToyTask"
  c.seed = 3
  c.steps = 30
  c.batch_size = 8
  c.noise = 0.1
  c.export = "toy"
  c.optimiser = dict(
    learning_rate=1e-2, final_learning_rate=1e-4, warmup=5, b1=0.9, b2=0.99, eps=1e-8
  )
  c.optimiser.update(weight_decay=0.01, clip_norm=1.0, ema=0.9)
  c.sharding = dict(mesh=dict(data=-1), rules={})
  c.checkpoint = dict(every=10, keep=3)
  c.evaluation = dict(log_every=10, sample_every=1000)
  for name, value in changes.items():
    *path, last = name.split("__")
    target = c
    for part in path:
      target = target[part]
    with target.unlocked():
      target[last] = value
  return c
