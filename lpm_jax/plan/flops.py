"""Operations: what the model has to compute, and what a traced program does on all devices."""

import collections
import dataclasses
import math
from typing import Any

from lpm_jax.models.blocks import TransformerConfig
from lpm_jax.plan.branches import Shares, share_of

CONVENTION = (
  "3 x the matrix products of the transformer's forward pass, every token attending to every "
  "token, all slots of references, text and audio branches included; encoders' adapters, "
  "timesteps and rotations left out, nothing counted twice"
)
Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class KernelCall:
  """Calls of one Pallas kernel with operands and results of the same shapes.

  Attributes:
    name: of the kernel.
    operands, results: shapes, by which a call is found in the compiled program.
    flops: of one call on one device.
    calls: on each device, in the mean where branches are not always taken.
  """

  name: str
  operands: Shapes
  results: Shapes
  flops: int
  calls: float


@dataclasses.dataclass(frozen=True)
class Work:
  """Operations of a program: products outside kernels over all devices, and its kernels."""

  products: float
  kernels: tuple[KernelCall, ...]


def forward_flops(
  config: TransformerConfig,
  *,
  frames: int,
  grid: int,
  slots: int,
  text: int,
  audio: int,
  seen: float | None = None,
) -> float:
  """One clip through the transformer once.

  Args:
    frames: latent frames.
    grid: tokens of a frame, or of a reference.
    slots: references.
    text: tokens.
    audio: tokens of one track.
    seen: pairs of a query's and a key's grid, where not every one of this call sees every other.
  """
  width, video, tokens = config.width, frames * grid, (frames + slots) * grid
  pairs = tokens**2 if seen is None else seen * grid**2
  own = 8 * tokens * width**2 + 4 * pairs * width
  cross = 4 * video * width**2 + 4 * text * width**2 + 4 * video * text * width
  heard = 2 * video * width**2 + 4 * audio * config.audio_width * width + 4 * video * audio * width
  blocks = config.layers * (own + cross + heard + 4 * tokens * width * config.hidden)
  patch = config.channels * math.prod(config.patch)
  ends = 2 * (tokens + video) * patch * width + 2 * text * width * (config.text_width + width)
  return blocks + ends


def count_work(jaxpr: Any, shares: Shares | None = None) -> Work:
  """Multiply-adds of products and convolutions times two; loops count every turn.

  A kernel counts its body once a grid point: blocks that it skips are counted too. `shares` say how
  often branches are taken (branches.py).
  """
  counter = _Counter(shares or {})
  counter.visit(jaxpr, times=1, spread=1)
  kernels = tuple(KernelCall(*kernel, calls) for kernel, calls in sorted(counter.kernels.items()))
  return Work(counter.products, kernels)


class _Counter:
  def __init__(self, shares: Shares):
    self.shares, self.products = shares, 0
    self.kernels: collections.Counter = collections.Counter()

  def visit(self, jaxpr: Any, times: float, spread: int):
    """`times` a turn of loops, on `spread` devices that work on parts of their own."""
    for eqn in jaxpr.eqns:
      name, params = eqn.primitive.name, eqn.params
      if name in ("dot_general", "conv_general_dilated"):
        self.products += times * spread * product_flops(eqn)
      elif name == "pallas_call":
        shapes = (tuple(tuple(v.aval.shape) for v in vs) for vs in (eqn.invars, eqn.outvars))
        self.kernels[_kernel_name(params), *shapes, kernel_flops(params)] += times
      elif name == "shard_map":
        devices = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        self.visit(_body(params["jaxpr"]), times, spread * devices)
      else:
        turns = params.get("length", 1) if name == "scan" else 1
        if name == "cond":
          turns = share_of(str(eqn.source_info.name_stack), self.shares)
        for inner in inner_jaxprs(params):
          self.visit(inner, times * turns, spread)


def product_flops(eqn: Any) -> int:
  """Of one dot_general or convolution."""
  if eqn.primitive.name == "dot_general":
    (contract, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contract)
  kernel = eqn.invars[1].aval.shape
  features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  return 2 * eqn.outvars[0].aval.size * math.prod(kernel) // features


def kernel_flops(params: dict) -> int:
  """Of one call: the products of the body at every point of the grid."""
  grid = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
  body = _Counter({})
  body.visit(_body(params["jaxpr"]), times=grid, spread=1)
  return body.products


def inner_jaxprs(params: dict) -> list:
  """The jaxprs among the parameters of an equation; of branches, the one with most products."""
  found = []
  for name, value in params.items():
    several = value if isinstance(value, tuple | list) else (value,)
    bodies = [_body(item) for item in several if hasattr(_body(item), "eqns")]
    if name == "branches" and bodies:
      bodies = [max(bodies, key=_products)]
    found += bodies
  return found


def _products(jaxpr: Any) -> int:
  counter = _Counter({})
  counter.visit(jaxpr, times=1, spread=1)
  return counter.products


def _body(jaxpr: Any) -> Any:
  return getattr(jaxpr, "jaxpr", jaxpr)


def _kernel_name(params: dict) -> str:
  info = params.get("name_and_src_info")
  return getattr(info, "name", None) or params.get("name") or "kernel"
