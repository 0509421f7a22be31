"""Branches that a program does not take in every step.

A task says in which share of the steps (`shares()`), by the name of the scope of a `lax.cond`: the
traced program and the compiled one both carry it. What is not named counts as always taken.
"""

import re
from collections.abc import Mapping

Shares = Mapping[str, float]  # name of a jax.named_scope -> share of the mean step


def share_of(scope: str, shares: Shares) -> float:
  """Share of a conditional right within a scope.

  Args:
    scope: its name stack, "jvp(turn)", or its name in a compiled program, "jit(f)/jvp(turn)/cond".
    shares: by name, without the transformations around it.
  """
  innermost = scope.removesuffix("/cond").rpartition("/")[2]
  name = re.fullmatch(r"(?:\w+\()*(\w*)\)*", innermost)
  return shares.get(name[1], 1) if name else 1
