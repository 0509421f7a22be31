"""Networks that a task needs and does not train: teachers, references, what came before."""

from flax import nnx
from jax.typing import DTypeLike


class Frozen(nnx.Variable):
  """A weight that never learns: no gradient, no moments, no average."""


def freeze(module: nnx.Module, dtype: DTypeLike | None = None) -> nnx.Module:
  """The module with every parameter Frozen, in place; stored as `dtype` if one is given."""
  for _, part in nnx.iter_modules(module):
    for name, value in list(vars(part).items()):
      if isinstance(value, nnx.Param):
        weight = value[...] if dtype is None else value[...].astype(dtype)
        setattr(part, name, Frozen(weight, **value.get_metadata()))
  return module
