"""Branches that are not always taken: in the traced program, in the compiled one, in the time."""

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Shape

from lpm_jax.plan import flops
from lpm_jax.plan.branches import share_of
from lpm_jax.plan.schedule import read_schedule
from tests.plan.test_timeline import CLOCK, operation, play

SHARES = {"turn": 0.25}


@pytest.mark.parametrize(
  ("scope", "share"),
  [
    ("turn", 0.25),
    ("transpose(jvp(turn))", 0.25),
    ("jit(f)/while/body/jvp(turn)/cond", 0.25),
    ("jit(f)/jvp(turn)/cond/branch_1_fun/while/body/cond", 1),  # another one, deep within
    ("turns", 1),
    ("", 1),
  ],
)
def test_a_conditional_right_within_a_scope_has_its_share(scope, share):
  assert share_of(scope, SHARES) == share


def test_a_traced_branch_counts_as_often_as_it_is_taken_with_its_gradient():
  one = 2 * 8**3

  def run(x, w, due):
    with jax.named_scope("turn"):
      y = jax.lax.cond(due, lambda: jnp.tanh(x @ w), lambda: x)
    return (y @ w).sum()

  shapes = Shape((8, 8), jnp.float32), Shape((8, 8), jnp.float32), Shape((), jnp.bool_)
  traced = jax.make_jaxpr(jax.grad(run, argnums=(0, 1)))(*shapes).jaxpr
  assert flops.count_work(traced).products == (3 + 3) * one  # each product, and both gradients
  assert flops.count_work(traced, SHARES).products == (0.25 * 3 + 3) * one


TEXT = """
%busy (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %a = f32[8]{0} add(%p, %p)
  ROOT %b = f32[8]{0} add(%a, %a)
}

%idle (q: f32[8]) -> f32[8] {
  ROOT %q = f32[8]{0} parameter(0)
}

ENTRY %main (i: s32[], x: f32[8]) -> f32[8] {
  %i = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %c = f32[8]{0} conditional(%i, %x, %x), branch_computations={%idle, %busy}, META
}
"""


def test_a_compiled_branch_is_the_longest_and_has_the_share_of_its_scope():
  named = TEXT.replace("META", 'metadata={op_name="jit(f)/turn/cond"}')
  (found,) = (o for o in read_schedule(named, SHARES).computations["main"] if o.body)
  assert (found.body, found.times()) == ("busy", 0.25)
  (plain,) = (o for o in read_schedule(named).computations["main"] if o.body)
  assert plain.times() == 1


def test_a_branch_takes_its_share_of_the_time():
  body = (operation("product", cycles=100),)
  found = play(operation("c", "conditional", body="body", share=0.25), body=body)
  assert found.cycles == pytest.approx(0.25 * 100 / CLOCK)
