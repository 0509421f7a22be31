"""A model's own stream, with a gradient that needs the memory of one chunk.

As in Self Forcing (arXiv 2506.08009), a chunk is taken from one evaluation, the exit, drawn once
for all chunks; only through that one does a gradient flow, and caches are constants. So once the
gradient of a loss with respect to the latents is known, each chunk's share of the gradient of the
weights is a vector-Jacobian product of its own. The backward pass rolls the stream out once more
and takes them one by one, in place of keeping what all chunks left.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array

from lpm_jax.distillation.replay import where_wanted
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.streaming.sampler import Evaluations, evaluate, past_of

EVALUATION = "evaluation_"  # with its index: names the branch, see plan/branches.py


@struct.dataclass
class Script:
  """What a stretch of n chunks is made of, apart from the weights.

  Attributes:
    conditions: of each chunk, as `OnlineLPM.step` takes them without references: [n, B, ...].
    keys: random keys, [n].
    given: latents [n, B, frames, H, W, C] that are noised to the first level: the coarse ones for a
      refiner; a backbone begins with noise and looks at none of them.
    exit: int32 [], index of the evaluation that makes the chunk.
    history: fp32 [n], timesteps at which chunks are read for the cache, `Evaluations.history` or
      more, where histories are corrupted; nothing where that is None.
  """

  conditions: Conditions
  keys: Array
  given: Array
  exit: Array
  history: Array


def draw_history(key: Array, how: Evaluations, chunks: int, corrupted: float, most: float) -> Array:
  """Timesteps of histories, fp32 [chunks]: with probability `corrupted` anything up to `most`.

  A stream that has always seen what it was meant to see cannot mend what it was not.
  """
  level = how.history or 0.0
  chosen, noise = jax.random.split(key)
  more = jax.random.uniform(noise, (chunks,), minval=level, maxval=max(most, level))
  return jnp.where(jax.random.bernoulli(chosen, corrupted, (chunks,)), more, level)


def draw_exit(key: Array, how: Evaluations) -> Array:
  """The exit of a rollout, int32 []: one for all chunks, and for all processes that share a key."""
  return jax.random.randint(key, (), 0, len(how.levels))


def roll_out(
  model: VideoTransformer, how: Evaluations, cache: StreamCache, script: Script
) -> tuple[Array, StreamCache]:
  """Latents [n, B, frames, H, W, C] and the cache after them.

  With the last exit these are the latents that are streamed. Differentiable in the weights of the
  model alone.
  """
  graphdef, state = nnx.split(model)
  return _roll_out(graphdef, how, state, cache, script)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _roll_out(
  graphdef: nnx.GraphDef, how: Evaluations, state: nnx.State, cache: StreamCache, script: Script
) -> tuple[Array, StreamCache]:
  return _forward(graphdef, how, state, cache, script)[0]


def _forward(graphdef, how, state, cache, script):
  def chunk(cache: StreamCache, own: tuple) -> tuple[StreamCache, tuple[Array, Array]]:
    conditions, key, clean, history = own
    model, noises = nnx.merge(graphdef, state), how.noises(key, clean.shape)
    past, before = past_of(model, cache, clean.shape), clean
    read = functools.partial(evaluate, model, past, conditions=conditions)
    kept = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(lambda: read(clean, noises[0], how.levels[0])[1]),
    )
    for i, (level, noise) in enumerate(zip(how.levels, noises, strict=False)):
      before = jnp.where(i == script.exit, clean, before)
      go_on = lambda clean, kept, noise=noise, level=level: read(clean, noise, level)  # noqa: E731
      with jax.named_scope(f"{EVALUATION}{i}"):
        clean, kept = jax.lax.cond(
          i <= script.exit, go_on, lambda clean, kept: (clean, kept), clean, kept
        )
    if how.history is not None:
      _, kept = read(clean, noises[-1], history)
    return cache.pushed(kept), (clean, before)

  stretch = script.conditions, script.keys, script.given, script.history
  after, (made, before) = jax.lax.scan(chunk, cache, stretch)
  return (made, after), (state, cache, script, before)


def _backward(graphdef: nnx.GraphDef, how: Evaluations, kept: tuple, of_outputs: tuple):
  state, cache, script, before = kept
  of_made, _ = of_outputs
  level = jnp.asarray(how.levels)[script.exit]

  def chunk(carry: tuple, own: tuple) -> tuple[tuple, None]:
    cache, total = carry
    conditions, key, before, of_chunk, history = own
    noises = how.noises(key, before.shape)
    past = past_of(nnx.merge(graphdef, state), cache, before.shape)

    def made_by(state: nnx.State):
      model = nnx.merge(graphdef, state)
      return evaluate(model, past, before, noises[script.exit], level, conditions)

    made, vjp, left = jax.vjp(made_by, state, has_aux=True)
    (gradient,) = vjp(of_chunk)
    if how.history is not None:
      model = nnx.merge(graphdef, state)
      _, left = evaluate(model, past, made, noises[-1], history, conditions)
    return (cache.pushed(left), jax.tree.map(jnp.add, total, gradient)), None

  def replay() -> nnx.State:
    stretch = script.conditions, script.keys, before, of_made, script.history
    zeros = jax.tree.map(jnp.zeros_like, state)
    return jax.lax.scan(chunk, (cache, zeros), stretch)[0][1]

  return where_wanted(of_made, replay, state), None, None


_roll_out.defvjp(_forward, _backward)
