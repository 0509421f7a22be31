"""Schedule, decay mask, stage factors and moving average against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.training.curriculum import clip_kind, read_stages
from lpm_jax.training.optimiser import decay_mask, learning_rate, make_optimiser
from lpm_jax.training.state import update_average
from tests.training.toy import Toy, toy_config


def test_learning_rate_warms_up_then_follows_a_cosine():
  config = toy_config(optimiser__warmup=10).optimiser
  rate = learning_rate(config, 110)
  assert float(rate(0)) == 0.0
  np.testing.assert_allclose(float(rate(10)), 1e-2, rtol=1e-5)
  np.testing.assert_allclose(float(rate(60)), (1e-2 + 1e-4) / 2, rtol=1e-4)
  np.testing.assert_allclose(float(rate(110)), 1e-4, rtol=1e-3)


def test_only_matrices_decay_stacked_layers_not_counted():
  def named(shape: tuple, names: tuple) -> nnx.Param:
    return nnx.Param(jnp.ones(shape), out_sharding=names, eager_sharding=False)

  params = nnx.State(
    {
      "kernel": named((2, 3), ("embed", "mlp")),
      "bias": named((3,), ("mlp",)),
      "stacked_bias": named((4, 3), ("layers", "mlp")),
      "unnamed": nnx.Param(jnp.ones((2, 2))),
    }
  )
  mask = nnx.to_pure_dict(decay_mask(params))
  assert mask == {"kernel": True, "bias": False, "stacked_bias": False, "unnamed": True}


def test_stage_factors_scale_and_freeze_by_path():
  stages = [(2, [("down", 0.0), (".", 0.5)]), (5, [])]
  config = toy_config(optimiser__warmup=0).optimiser
  params = nnx.state(Toy(nnx.Rngs(0)), nnx.Param)
  grads = jax.tree.map(jnp.ones_like, params)

  def updates_of(optimiser) -> list[dict]:
    state, rows = optimiser.init(params), []
    for _ in range(3):
      updates, state = optimiser.update(grads, state, params)
      rows.append(nnx.to_pure_dict(updates))
    return rows

  plain = updates_of(make_optimiser(config, 50))
  staged = updates_of(make_optimiser(config, 50, stages))
  for step, factors in enumerate([{"up": 0.5, "down": 0.0}] * 2 + [{"up": 1.0, "down": 1.0}]):
    for name, factor in factors.items():
      np.testing.assert_allclose(staged[step][name], factor * plain[step][name], rtol=1e-6)


def test_average_warms_up_then_decays():
  ema = update_average({"w": jnp.zeros(())}, {"w": jnp.ones(())}, 0.99, jnp.int32(0))
  np.testing.assert_allclose(ema["w"], 0.9, rtol=1e-6)
  ema = update_average({"w": jnp.zeros(())}, {"w": jnp.ones(())}, 0.99, jnp.int32(10_000))
  np.testing.assert_allclose(ema["w"], 0.01, rtol=1e-5)


def test_stage_entries_are_checked_by_name():
  with pytest.raises(ValueError, match="stage 'a': unknown fields .'mixtures'"):
    read_stages([dict(name="a", steps=1, mixtures={})])
  with pytest.raises(ValueError, match="stage 'a': mixture: found .'talk'"):
    read_stages([dict(name="a", steps=1, mixture={"talk": 1})])
  with pytest.raises(ValueError, match="stage 'a': extension: found 2"):
    read_stages([dict(name="a", steps=1, mixture={"idle": 1}, extension=2)])


@pytest.mark.parametrize(
  ("state", "kind"),
  [([0, 0], "idle"), ([0, 1], "speak"), ([2, 0], "listen"), ([1, 2], "dialogue")],
)
def test_clip_kind_comes_from_the_states(state: list, kind: str):
  assert clip_kind(np.array(state, np.int8)) == kind
