"""Gradients that are taken by running once more, and only where they are wanted.

In most steps of distribution matching the student does not learn: what its activations would need
of memory, and the backward pass, can wait until a gradient that is not zero comes back.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

SCOPE = "replay"  # names the branch, see plan/branches.py


def where_wanted(of_made: Array, gradient: Callable[[], nnx.State], state: nnx.State) -> nnx.State:
  """`gradient()`, like `state`, where any of `of_made` is not zero; zeros elsewhere."""
  wanted = jnp.any(of_made != 0)
  with jax.named_scope(SCOPE):
    return jax.lax.cond(wanted, gradient, lambda: jax.tree.map(jnp.zeros_like, state))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def replayed(run: Callable[[nnx.State, Any], Array], state: nnx.State, given: Any) -> Array:
  """`run(state, given)`, an array; its gradient with respect to `state` alone keeps nothing else.

  `run` closes over no arrays.
  """
  return run(state, given)


def _forward(run, state, given):
  return run(state, given), (state, given)


def _backward(run, kept, of_made):
  state, given = kept

  def gradient() -> nnx.State:
    return jax.vjp(lambda state: run(state, given), state)[1](of_made)[0]

  return where_wanted(of_made, gradient, state), None


replayed.defvjp(_forward, _backward)
