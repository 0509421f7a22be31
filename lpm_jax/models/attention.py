"""Attention: one function that every block calls, and the masks it is called with."""

import jax
import jax.numpy as jnp
from jax import Array


def attend(
  query: Array,
  key: Array,
  value: Array,
  *,
  mask: Array | None = None,
  bias: Array | None = None,
  scale: float | None = None,
) -> Array:
  """Softmax attention with fp32 statistics.

  Shapes: query [B, S, K, d], key and value [B, T, K, d]; mask bool, broadcast to [B, K, S, T],
  True where a query may look; bias fp32, likewise, added to the logits; scale of the logits, by
  default d ** -0.5. Returns [B, S, K, d].
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  logits = jnp.einsum("bskd,btkd->bkst", query * scale, key, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bkst,btkd->bskd", weights, value)


def window_mask(frames: int, tokens: int, before: int, after: int) -> Array:
  """Which audio tokens a latent frame sees: bool [frames, frames * tokens].

  Frame f sees the tokens of frames f - before .. f + after. With A = 4 audio tokens a latent frame
  the keys are few (128 for a clip of 32 latent frames), so a masked dense product costs little at
  every scale. Made of iotas: under jit no array of the mask's size is stored in the program.
  """
  query = jnp.arange(frames)[:, None]
  key = jnp.arange(frames * tokens)[None] // tokens
  return (key >= query - before) & (key <= query + after)
