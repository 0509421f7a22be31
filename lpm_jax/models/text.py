"""Small text encoder, trained along at the `puppets` scale; its tokenizer needs no vocabulary."""

import dataclasses
import re
import zlib

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lpm_jax.models.attention import attend
from lpm_jax.models.layers import FeedForward, LayerNorm, Linear, parameter

VOCABULARY = 2048
_WORD = re.compile(r"[^\W_]+|[^\w\s]")


def tokenize(text: str, length: int) -> np.ndarray:
  """Words and punctuation hashed to 1 .. VOCABULARY - 1.

  Returns int32 [length], padded with 0 or cut; the hash is the same in every process.
  """
  words = _WORD.findall(text.lower())[:length]
  tokens = np.zeros(length, np.int32)
  tokens[: len(words)] = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
  return tokens


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of the small encoder: width D_text, heads, layers, and the longest text L."""

  width: int = 128
  heads: int = 4
  layers: int = 2
  length: int = 24


class TextLayer(nnx.Module):
  """Pre-norm self-attention and feed-forward over text tokens."""

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
    width = config.width
    fp32 = dict(dtype=jnp.float32, rngs=rngs)
    self.heads = config.heads
    self.norm, self.feed_norm = LayerNorm(width), LayerNorm(width)
    self.project = Linear(width, 3 * width, axes=("embed", "heads"), **fp32)
    self.out = Linear(width, width, axes=("heads", "embed"), **fp32)
    self.feed_forward = FeedForward(width, 4 * width, **fp32)

  def __call__(self, x: Array, mask: Array) -> Array:
    batch, length, width = x.shape
    split = self.project(self.norm(x)).reshape(batch, length, 3, self.heads, -1)
    attended = attend(split[:, :, 0], split[:, :, 1], split[:, :, 2], mask=mask)
    x = x + self.out(attended.reshape(batch, length, width))
    return x + self.feed_forward(self.feed_norm(x))


class FrozenText(nnx.Module):
  """Features [B, L, D_text] of a frozen encoder, as they come; zero where the text has ended.

  `null` stands for a dropped text, as in `TextEncoder`.
  """

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.null = parameter(nnx.initializers.normal(0.02)(rngs.params(), (width,)), ("embed",))

  def __call__(self, features: Array) -> Array:
    return features


class TextEncoder(nnx.Module):
  """Tokens int32 [B, L] -> [B, L, D_text], zeroed where the text has ended (as Wan2.1 does).

  `null` stands for a dropped text (guidance); the empty text is all zeros: two different things.
  """

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
    normal = nnx.initializers.normal(0.5)
    self.table = parameter(normal(rngs.params(), (VOCABULARY, config.width)), (None, "embed"))
    self.position = parameter(normal(rngs.params(), (config.length, config.width)), (None, "embed"))
    self.layers = nnx.List([TextLayer(config, rngs=rngs) for _ in range(config.layers)])
    self.norm = LayerNorm(config.width)
    self.null = parameter(nnx.initializers.normal(0.02)(rngs.params(), (config.width,)), ("embed",))

  def __call__(self, tokens: Array) -> Array:
    if tokens.shape[1] > self.position.shape[0]:
      raise ValueError(f"text_tokens: {tokens.shape[1]} tokens, at most {self.position.shape[0]}")
    present = tokens > 0
    x = self.table[...][tokens] + self.position[...][: tokens.shape[1]]
    # An empty text still needs one key to look at, else its softmax has nothing to sum to one.
    mask = (present | ~present.any(axis=1, keepdims=True))[:, None, None]
    for layer in self.layers:
      x = layer(x, mask)
    return jnp.where(present[..., None], self.norm(x), 0.0)
