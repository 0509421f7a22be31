"""Operations of traced programs against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import ShapeDtypeStruct as Shape

from lpm_jax.models import flash
from lpm_jax.models.blocks import TransformerConfig
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.plan import flops


def count(run, *shapes) -> flops.Work:
  return flops.count_work(jax.make_jaxpr(run)(*shapes).jaxpr)


def test_loops_and_recomputation_count_every_turn():
  x, w = Shape((4, 8), jnp.float32), Shape((5, 8, 8), jnp.float32)
  one = 2 * 4 * 8 * 8

  def run(x, w):
    return jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, w)[0]

  assert count(run, x, w).products == 5 * one
  backward = count(jax.grad(lambda x, w: run(x, w).sum(), argnums=(0, 1)), x, w)
  assert backward.products == 5 * (one + one + 2 * one)  # forward, again, both gradients


def test_a_part_for_each_device_counts_for_all_of_them():
  """The sizes of a mesh count, not how many devices there are."""
  mesh = jax.sharding.AbstractMesh((3, 2), ("data", "tensor"))
  run = jax.shard_map(
    lambda x: x @ x.T, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"), check_vma=False
  )
  shape = Shape((12, 8), jnp.float32)
  assert count(run, shape).products == 6 * 2 * 4 * 4 * 8


def test_kernels_count_their_body_at_every_point_of_the_grid():
  heads, length, size = 3, 256, 128
  q, seen = Shape((2, heads, length, size), jnp.bfloat16), Shape((2, length), bool)
  how = flash.How("splash", "v5p", (None,))
  found = count(lambda q, s: flash.attend_parts(how, q, (q,), (q,), (s,)), q, seen)
  calls = {call.calls * call.flops for call in found.kernels}
  assert found.products == 0
  assert calls == {2 * 4 * length * length * heads * size}


def test_a_forward_pass_is_the_closed_form_and_the_audio_branch():
  config = TransformerConfig(
    width=64, heads=2, layers=4, hidden=96, text_width=16, audio_width=24, remat="full"
  )
  frames, side, text, slots, heard = 3, 8, 5, 2, 4
  graphdef, state = nnx.split(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))
  track = Shape((1, frames, heard, config.audio_width), jnp.float32)
  conditions = Conditions(
    text=Shape((1, text, config.text_width), jnp.float32),
    speak=track,
    listen=track,
    references=Shape((1, slots, side, side, config.channels), jnp.float32),
    reference_kind=Shape((1, slots), jnp.int32),
    reference_label=Shape((1, slots), jnp.int32),
  )
  latents = Shape((1, frames, side, side, config.channels), jnp.float32)
  found = count(
    lambda state, *args: nnx.merge(graphdef, state)(*args),
    state,
    latents,
    Shape((1, frames), jnp.float32),
    conditions,
  )
  grid, d, head = side * side // 4, config.width, config.width // config.heads
  closed = flops.forward_flops(
    config, frames=frames, grid=grid, slots=slots, text=text, audio=frames * heard
  )
  times = 2 * (frames + slots) * d * (256 + d + 6 * d)
  tokens, audio = (frames + slots) * grid, frames * (grid + heard)
  turned = 2 * config.layers * (2 * tokens + audio) * d * head
  tables = 2 * (tokens + config.layers * frames * (1 + heard)) * head**2
  assert found.products == closed + times + turned + tables


def test_the_closed_form_is_the_published_count_of_wan():
  """19,573 TFLOP for a training step of 81 frames at 1280x720 (maxdiffusion's golden)."""
  config = TransformerConfig.lpm_17b()
  sizes = dict(frames=21, grid=45 * 80, slots=0, text=512)
  found = flops.forward_flops(config, audio=0, **sizes)
  asked = 2 * config.layers * 21 * 45 * 80 * config.width**2  # of the audio branch's output
  np.testing.assert_allclose(3 * (found - asked), 19_573e12, rtol=0.01)


@pytest.mark.parametrize("branch", [0, 1])
def test_of_branches_the_longer_counts(branch):
  short, long = (lambda x: x), (lambda x: x @ x)
  pair = (long, short) if branch else (short, long)
  found = count(lambda i, x: jax.lax.cond(i, *pair, x), Shape((), bool), Shape((4, 4), jnp.float32))
  assert found.products == 2 * 4**3
