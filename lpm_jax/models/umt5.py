"""umT5, the frozen text encoder of Wan2.1 and of the 17B model.

Source: transformers `UMT5EncoderModel` and Wan2.1 `wan/modules/t5.py`: RMS norm before each part,
no biases, logits not scaled, a table of relative positions of its own in every layer.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpm_jax.models.attention import attend
from lpm_jax.models.layers import Linear, RMSNorm, parameter


@dataclasses.dataclass(frozen=True)
class UMT5Config:
  """Sizes of the encoder; the defaults are umT5-xxl.

  Args:
    vocabulary: tokens.
    width: model width D_text.
    heads: attention heads K.
    head: channels of a head; K * head need not be D_text.
    hidden: inner width of the gated feed-forward layer.
    layers: blocks.
    buckets: relative positions told apart, both directions together.
    distance: tokens from which on all distances are one.
    dtype: of the computation; parameters are fp32.
  """

  vocabulary: int = 256_384
  width: int = 4096
  heads: int = 64
  head: int = 64
  hidden: int = 10_240
  layers: int = 24
  buckets: int = 32
  distance: int = 128
  dtype: str = "float32"


def relative_buckets(length: int, config: UMT5Config) -> np.ndarray:
  """The bucket of every (query, key) pair: int32 [length, length].

  Half of the buckets are for keys after the query. In each half, half of them are for the nearest
  distances one by one, the rest grow by logarithm up to `config.distance`.
  """
  half = config.buckets // 2
  exact = half // 2
  offset = np.arange(length)[None] - np.arange(length)[:, None]
  distance = np.maximum(np.abs(offset), 1).astype(np.float32)
  ratio = np.log(distance / np.float32(exact)) / np.float32(math.log(config.distance / exact))
  far = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
  return np.where(offset > 0, half, 0) + np.where(np.abs(offset) < exact, np.abs(offset), far)


class UMT5Layer(nnx.Module):
  """Self-attention with relative positions, then a gated feed-forward layer (GELU-tanh)."""

  def __init__(self, config: UMT5Config, *, rngs: nnx.Rngs):
    inner = config.heads * config.head
    dense = functools.partial(Linear, bias=False, dtype=jnp.dtype(config.dtype), rngs=rngs)
    self.heads = config.heads
    self.norm = RMSNorm(config.width)
    self.query, self.key, self.value = (
      dense(config.width, inner, axes=("embed", "heads")) for _ in range(3)
    )
    self.out = dense(inner, config.width, axes=("heads", "embed"))
    self.position = parameter(jnp.zeros((config.buckets, config.heads)), (None, "heads"))
    self.feed_norm = RMSNorm(config.width)
    self.gate = dense(config.width, config.hidden, axes=("embed", "mlp"))
    self.up = dense(config.width, config.hidden, axes=("embed", "mlp"))
    self.down = dense(config.hidden, config.width, axes=("mlp", "embed"))

  def __call__(self, x: Array, buckets: np.ndarray, mask: Array) -> Array:
    """x [B, L, D], buckets int32 [L, L], mask bool [B, 1, 1, L] -> [B, L, D]."""
    batch, length, _ = x.shape
    normed = self.norm(x)
    query, key, value = (
      project(normed).reshape(batch, length, self.heads, -1)
      for project in (self.query, self.key, self.value)
    )
    bias = jnp.moveaxis(self.position[...][buckets], -1, 0)[None]
    attended = attend(query, key, value, mask=mask, bias=bias, scale=1.0)
    x = x + self.out(attended.reshape(batch, length, -1))
    normed = self.feed_norm(x)
    return x + self.down(nnx.gelu(self.gate(normed), approximate=True) * self.up(normed))


class UMT5Encoder(nnx.Module):
  """Tokens int32 [B, L] -> [B, L, D_text], zeroed where the text has ended, as Wan2.1 does.

  Token 0 is padding: no token looks at it.
  """

  def __init__(self, config: UMT5Config, *, rngs: nnx.Rngs):
    self.config = config
    table = jax.random.normal(rngs.params(), (config.vocabulary, config.width))
    self.table = parameter(table, (None, "embed"))
    self.layers = _stack(config, rngs)
    self.norm = RMSNorm(config.width)

  def __call__(self, tokens: Array) -> Array:
    present = tokens > 0
    buckets = relative_buckets(tokens.shape[1], self.config)
    x = self.table[...][tokens].astype(self.config.dtype)
    graphdef, stacked = nnx.split(self.layers)

    def run_layer(x: Array, state: nnx.State) -> tuple[Array, None]:
      return nnx.merge(graphdef, state)(x, buckets, present[:, None, None]), None

    x, _ = jax.lax.scan(run_layer, x, stacked)
    return jnp.where(present[..., None], self.norm(x), 0.0)


def _stack(config: UMT5Config, rngs: nnx.Rngs) -> UMT5Layer:
  """All layers as one module whose parameters have a leading `layers` axis."""

  @nnx.split_rngs(splits=config.layers)
  @nnx.vmap(axis_size=config.layers, transform_metadata={nnx.PARTITION_NAME: "layers"})
  def build(rngs: nnx.Rngs) -> UMT5Layer:
    return UMT5Layer(config, rngs=rngs)

  return build(rngs)
