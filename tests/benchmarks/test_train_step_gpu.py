"""The GPU comparison counts its work right."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.gpu_step_jax import loss_of, make_inputs, model_config
from benchmarks.train_step_gpu import Case, fitted
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.training.hooks import jaxpr_flops

CASE = Case(1536, 12, 8960, layers=4, grid=(5, 32, 48), remat=False, kernel="dense")


def test_flops_of_a_step_are_three_forwards_of_the_program():
  config = model_config(CASE)
  model = nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0)))
  inputs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_inputs(CASE, config.channels)))
  graphdef, params = nnx.split(model)
  traced = jax.jit(functools.partial(loss_of, graphdef)).trace(params, inputs)
  # The program also turns keys by a product with a permutation, and embeds latents and text.
  counted = 3 * jaxpr_flops(traced.jaxpr.jaxpr)
  assert CASE.flops(audio=True) < counted < 1.06 * CASE.flops(audio=True)
  assert CASE.tokens == 5 * 16 * 24


@pytest.mark.parametrize("remat", [False, True])
def test_a_stack_is_cut_to_the_memory_there_is(remat: bool):
  case = dataclasses.replace(CASE, layers=40, grid=(21, 60, 104), remat=remat)
  layers = [fitted(case, gib * 2**30).layers for gib in (40, 80, 141)]
  assert layers == sorted(layers) and not any(n % 2 for n in layers)
  assert case.tokens == 32_760
  for count, gib in zip(layers, (40, 80, 141), strict=True):
    assert count * case.bytes_of_layer() < gib * 2**30
  with pytest.raises(SystemExit, match="hold no two blocks of width 1536"):
    fitted(case, 2 * 2**30)
