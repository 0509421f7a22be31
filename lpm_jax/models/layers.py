"""Layers of the transformer, their axes named: linear maps, norms, the timestep embedding."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lpm_jax.parallel import layout

Initializer = nnx.initializers.Initializer


def parameter(value: Array, names: tuple[str | None, ...]) -> nnx.Param:
  """A parameter that carries the logical names of its axes; a config maps them to a mesh."""
  return nnx.Param(value, out_sharding=names, eager_sharding=False)


class Linear(nnx.Module):
  """y = x W + b, computed in `dtype` from fp32 masters.

  Args:
    width: size of the last axis of the input.
    out: size of the last axis of the output.
    axes: logical names of the two kernel axes.
    init: kernel initialiser; Wan2.1 uses Xavier uniform.
  """

  def __init__(
    self,
    width: int,
    out: int,
    *,
    axes: tuple[str | None, str | None],
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    bias: bool = True,
    init: Initializer | None = None,
  ):
    init = init or nnx.initializers.xavier_uniform()
    self.kernel = parameter(init(rngs.params(), (width, out), jnp.float32), axes)
    self.bias = parameter(jnp.zeros(out), axes[1:]) if bias else None
    self.dtype, self.axes = dtype, axes

  def weights(self) -> Array:
    """The kernel as it is multiplied with: cast where it is stored, then brought together."""
    return layout.used(self.kernel[...].astype(self.dtype), self.axes)

  def __call__(self, x: Array) -> Array:
    y = x.astype(self.dtype) @ self.weights()
    return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class RMSNorm(nnx.Module):
  """x / rms(x) * gamma over the last axis, fp32 statistics (Wan2.1: q, k over the full width)."""

  def __init__(self, width: int, *, epsilon: float = 1e-6):
    self.scale = parameter(jnp.ones(width), ("embed",))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    wide = x.astype(jnp.float32)
    inverse = jnp.reciprocal(
      jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
    )
    return (wide * inverse * self.scale[...]).astype(x.dtype)


def layer_norm(x: Array, *, epsilon: float = 1e-6) -> Array:
  """Layer norm without scale and shift over the last axis; returns fp32."""
  wide = x.astype(jnp.float32)
  centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred / jnp.sqrt(variance + epsilon)


class LayerNorm(nnx.Module):
  """Layer norm with scale and shift, statistics in fp32."""

  def __init__(self, width: int, *, epsilon: float = 1e-6):
    self.scale = parameter(jnp.ones(width), ("embed",))
    self.bias = parameter(jnp.zeros(width), ("embed",))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    normed = layer_norm(x, epsilon=self.epsilon)
    return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class FeedForward(nnx.Module):
  """Position-wise MLP of a transformer block (Wan2.1: GELU-tanh, no gate).

  Args:
    width: model width D.
    hidden: inner width.
  """

  def __init__(self, width: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.up = Linear(width, hidden, axes=("embed", "mlp"), dtype=dtype, rngs=rngs)
    self.down = Linear(hidden, width, axes=("mlp", "embed"), dtype=dtype, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    return self.down(nnx.gelu(self.up(x), approximate=True))


def sinusoid(position: Array, width: int) -> Array:
  """Wan2.1's timestep features: cosines, then sines, base 10000. [...] -> fp32 [..., width]."""
  half = width // 2
  frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = position.astype(jnp.float32)[..., None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimestepEmbedding(nnx.Module):
  """Timesteps in [0, 1] -> embedding [..., D] and modulation [..., 6, D], all in fp32.

  Wan2.1: 1000 t -> sinusoid -> Linear-SiLU-Linear = embedding; SiLU-Linear of it = modulation.
  """

  def __init__(self, width: int, *, features: int = 256, rngs: nnx.Rngs):
    normal = nnx.initializers.normal(0.02)
    fp32 = dict(dtype=jnp.float32, rngs=rngs)
    self.features = features
    self.first = Linear(features, width, axes=(None, "embed"), init=normal, **fp32)
    self.second = Linear(width, width, axes=("embed", None), init=normal, **fp32)
    self.project = Linear(width, 6 * width, axes=("embed", "mlp"), **fp32)

  def __call__(self, timestep: Array) -> tuple[Array, Array]:
    embedding = self.second(nnx.silu(self.first(sinusoid(1000.0 * timestep, self.features))))
    modulation = self.project(nnx.silu(embedding))
    return embedding, modulation.reshape(*timestep.shape, 6, -1)
