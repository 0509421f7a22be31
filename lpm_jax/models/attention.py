"""Attention: one function that every block calls, and the masks it is called with."""

import dataclasses
from collections.abc import Callable

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
  kernel: str = "dense",
) -> Array:
  """Softmax attention with fp32 statistics.

  Shapes: query [B, S, K, d], key and value [B, T, K, d]; mask bool, broadcast to [B, K, S, T],
  True where a query may look; bias fp32, likewise, added to the logits; scale of the logits, by
  default d ** -0.5. Returns [B, S, K, d]. The backward pass computes the weights anew: S x T
  numbers a head are slower to write and read again than to make. The kernel "cudnn", on GPUs, has
  none of them in memory.
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  if kernel == "cudnn":
    return jax.nn.dot_product_attention(
      query, key, value, bias, mask, scale=scale, implementation="cudnn"
    )
  if kernel != "dense":
    raise ValueError(f"attention: found kernel {kernel!r}, expected dense or cudnn")
  return _attend(query * scale, key, value, mask, bias)


@jax.checkpoint
def _attend(
  query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
) -> Array:
  logits = jnp.einsum("bskd,btkd->bkst", query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bkst,btkd->bskd", weights, value)


def window_mask(frames: int, tokens: int, before: int, after: int, past: int = 0) -> Array:
  """Which audio tokens a latent frame sees: bool [frames, (past + frames) * tokens].

  Frame f sees the tokens of frames f - before .. f + after; the first `past` frames of tokens are
  those before frame 0. With A = 4 audio tokens a latent frame the keys are few (128 for a clip of
  32 latent frames), so a masked dense product costs little at every scale. Made of iotas: under jit
  no array of the mask's size is stored in the program.
  """
  query = jnp.arange(frames)[:, None]
  key = jnp.arange((past + frames) * tokens)[None] // tokens - past
  return (key >= query - before) & (key <= query + after)


@dataclasses.dataclass(frozen=True)
class ChunkCausal:
  """Which frames of a stream see which: Online LPM's mask (LPM 1.0, figure 6).

  Frame 0 is the main picture, on its own; chunk c holds the `frames` after frame c * frames. A
  frame sees the picture, its own chunk, the first `sink` chunks as far as they are past, and the
  last `window` chunks before its own.
  """

  frames: int = 6
  sink: int = 3
  window: int = 2

  def chunk(self, frame: Array) -> Array:
    """Chunk of a frame; -1 for the picture."""
    return (frame + self.frames - 1) // self.frames - 1

  def sees(self, query: Array, key: Array) -> Array:
    """Whether frame `query` sees frame `key`, elementwise."""
    query, key = self.chunk(query), self.chunk(key)
    near = (key < self.sink) | (key >= query - self.window)
    return (key <= query) & near

  def visible(self, count: int) -> Array:
    """Which of `count` frames (columns) a frame (row) sees: bool [count, count]."""
    return _square(self.sees, count)

  def audible(self, count: int) -> Array:
    """Which frames of audio a frame may hear: those up to the end of its chunk."""
    return _square(lambda query, key: self.chunk(key) <= self.chunk(query), count)

  def times(self, count: int) -> Array:
    """Temporal index of each of `count` frames."""
    return jnp.arange(count)


@dataclasses.dataclass(frozen=True)
class TeacherForcing:
  """A whole stream at once, as a causal model is trained: `frames` clean ones, then as many noisy.

  A clean frame sees what `causal` lets it see. A noisy one sees its own chunk, noisy, and of all
  earlier chunks what `causal` lets it see, clean.

  Args:
    causal: the mask of the stream.
    frames: of the stream, the main picture included.
  """

  causal: ChunkCausal
  frames: int

  def sees(self, query: Array, key: Array) -> Array:
    """Whether frame `query` sees frame `key`, elementwise; indices up to 2 * frames."""
    noisy_query, noisy_key = query >= self.frames, key >= self.frames
    query, key = (x - self.frames * (x >= self.frames) for x in (query, key))
    same_chunk = self.causal.chunk(query) == self.causal.chunk(key)
    allowed = self.causal.sees(query, key)
    # In words of integers: kernels for TPUs do not choose between masks.
    return allowed & (noisy_key == (noisy_query & same_chunk))

  def audible(self, count: int) -> Array:
    """As for `causal`, within the clean and within the noisy frames."""
    half = jnp.arange(count) // self.frames
    return jnp.tile(self.causal.audible(self.frames), (2, 2)) & (half[:, None] == half[None])

  def times(self, count: int) -> Array:
    """A noisy frame stands where its clean one does."""
    return jnp.arange(count) % self.frames


@dataclasses.dataclass(frozen=True)
class GridMask:
  """Which grids see which, where references follow the frames of a video.

  Frames see references, and frames as in `video`; references see each other.
  """

  video: ChunkCausal | TeacherForcing
  frames: int

  def __call__(self, query: Array, key: Array) -> Array:
    """Whether grid `query` sees grid `key`, elementwise."""
    return (key >= self.frames) | ((query < self.frames) & self.video.sees(query, key))


def _square(sees: Callable[[Array, Array], Array], count: int) -> Array:
  index = jnp.arange(count)
  return sees(index[:, None], index[None])
