"""How a public checkpoint lies: which of its tensors is which of ours, and in which order of axes.

A layout is a list of entries, one for each tensor of the public checkpoint. Every entry can be read
in both directions, so import and export share one table.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from lpm_jax.weights.shipped import WeightsError, flat_state

LINEAR = "o i -> i o"
SAME = "... -> ..."


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of a public checkpoint.

  Args:
    source: its name there.
    target: '/'-joined path of the parameter here.
    axes: einops pattern from the tensor there to the parameter here.
    index: its place on the leading `layers` axis of the parameter, or None.
    sizes: of the axes that `axes` joins, by name.
    kept: (axis there, n, m): only the first n of its m indices have a place here.
  """

  source: str
  target: str
  axes: str = SAME
  index: int | None = None
  sizes: tuple[tuple[str, int], ...] = ()
  kept: tuple[int, int, int] | None = None

  def imported(self, tensor: np.ndarray) -> np.ndarray:
    """What is kept of the tensor, in our order of axes."""
    if self.kept:
      axis, first, _ = self.kept
      tensor = tensor[(slice(None),) * axis + (slice(first),)]
    return rearrange(tensor, self.axes, **dict(self.sizes))

  def exported(self, parameter: np.ndarray) -> np.ndarray:
    """Our parameter (the part at `index`) in the order of axes of the public checkpoint."""
    there, here = self.axes.split("->")
    return rearrange(parameter, f"{here} -> {there}", **dict(self.sizes))

  def shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the public tensor, given that of the whole parameter here."""
    part = target_shape if self.index is None else target_shape[1:]
    shape = self.exported(np.broadcast_to(np.float32(0), part)).shape
    return self._resized(shape, self.kept[2]) if self.kept else shape

  def left_out(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The part of a public tensor of this shape that is not kept, as {"name[:, n:]": its shape}."""
    if not self.kept:
      return {}
    axis, first, of = self.kept
    part = "[" + ":, " * axis + f"{first}:]"
    return {self.source + part: self._resized(shape, of - first)}

  def _resized(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    axis = self.kept[0]
    return (*shape[:axis], size, *shape[axis + 1 :])


def linear(source: str, target: str, index: int | None = None, *, bias: bool = True) -> list[Entry]:
  """Weight and bias of a linear layer."""
  weight = Entry(f"{source}.weight", f"{target}/kernel", LINEAR, index)
  return [weight, Entry(f"{source}.bias", f"{target}/bias", SAME, index)][: 1 + bias]


def norm(source: str, target: str, index: int | None = None, *, bias: bool = True) -> list[Entry]:
  """Scale and shift of a norm."""
  scale = Entry(f"{source}.weight", f"{target}/scale", SAME, index)
  return [scale, Entry(f"{source}.bias", f"{target}/bias", SAME, index)][: 1 + bias]


@dataclasses.dataclass(frozen=True)
class Differences:
  """What a public checkpoint and a module do not share.

  Args:
    dropped: names of public tensors that have no place here, with their shapes.
    new: paths of parameters here that the checkpoint does not know, with their shapes.
  """

  dropped: dict[str, tuple[int, ...]]
  new: dict[str, tuple[int, ...]]

  def summary(self) -> str:
    """One line a group of names, counted in tensors and parameters."""
    lines = []
    for title, tensors in (("dropped", self.dropped), ("new", self.new)):
      count = sum(int(np.prod(shape)) for shape in tensors.values())
      lines.append(f"{title}: {len(tensors)} tensors, {count:,} parameters")
      groups: dict[str, int] = {}
      for name in tensors:
        group = ".".join("*" if part.isdigit() else part for part in name.split("."))
        groups[group] = groups.get(group, 0) + 1
      lines += [f"  {name}" + (f" ({n})" if n > 1 else "") for name, n in groups.items()]
    return "\n".join(lines)


def check(
  entries: Iterable[Entry],
  module: nnx.Module,
  shapes: Mapping[str, tuple[int, ...]],
  *,
  dropped: Callable[[str], bool],
  where: str,
) -> Differences:
  """Compares the names and shapes of a public checkpoint with a layout and the module it fills.

  Args:
    entries: the layout.
    module: the module, which may be abstract (`nnx.eval_shape`).
    shapes: shape of every tensor of the checkpoint by name.
    dropped: says whether a tensor that the layout does not name is left out on purpose.
    where: the checkpoint, for messages.

  Raises:
    WeightsError: a missing, unknown or wrongly shaped tensor, by name.
  """
  entries, state = list(entries), flat_state(module)
  left, parts = dict(shapes), {}
  if not any(entry.source in left for entry in entries):
    raise WeightsError(f"{where}: another model: none of the {len(entries)} tensors is in it")
  for entry in entries:
    if entry.source not in left:
      raise WeightsError(f"{where}: {entry.source}: missing")
    found, expected = tuple(left.pop(entry.source)), entry.shape(state[entry.target].shape)
    if found != expected:
      raise WeightsError(f"{where}: {entry.source}: found shape {found}, expected {expected}")
    parts |= entry.left_out(found)
  unknown = sorted(name for name in left if not dropped(name))
  if unknown:
    others = f", nor are {len(unknown) - 1} others" if len(unknown) > 1 else ""
    raise WeightsError(f"{where}: {unknown[0]}: not known{others}")
  filled = {entry.target for entry in entries}
  new = {path: leaf.shape for path, leaf in state.items() if path not in filled}
  return Differences(dropped=left | parts, new=new)


def fill(entries: Iterable[Entry], module: nnx.Module, tensors: Mapping[str, np.ndarray]):
  """Sets the parameters of a module that a layout names from public tensors, all in memory."""
  state = flat_state(module)
  for entry in entries:
    leaf, value = state[entry.target], entry.imported(np.asarray(tensors[entry.source]))
    value = jnp.asarray(value, leaf.dtype)
    leaf[...] = value if entry.index is None else leaf[...].at[entry.index].set(value)


def read_out(entries: Iterable[Entry], module: nnx.Module) -> dict[str, np.ndarray]:
  """The public tensors that a layout names, from the parameters of a module."""
  state = {path: np.asarray(leaf[...]) for path, leaf in flat_state(module).items()}
  tensors = {}
  for entry in entries:
    value = state[entry.target]
    part = value if entry.index is None else value[entry.index]
    tensors[entry.source] = np.ascontiguousarray(entry.exported(part))
  return tensors


def names_in_common(entries: Iterable[Entry], names: Mapping[str, object]) -> int:
  """How many tensors of a layout a checkpoint has."""
  return sum(entry.source in names for entry in entries)
