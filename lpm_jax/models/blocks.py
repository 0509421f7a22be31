"""The block of the video diffusion transformer: self-attention, text and audio, feed-forward.

In every block one audio branch runs parallel to text and shares its query; even blocks hear the
character's own speech through a narrow window, odd blocks the partner's through a wide one.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from lpm_jax.models import rotary
from lpm_jax.models.attention import attend, window_mask
from lpm_jax.models.chunk_attention import Source, chunk_attend, source_of
from lpm_jax.models.context import EXCHANGES, Grids, attend_cached, attend_from_video, attend_grids
from lpm_jax.models.flash import BLOCKS
from lpm_jax.models.identity import ReferenceOffsets
from lpm_jax.models.layers import FeedForward, LayerNorm, Linear, RMSNorm, layer_norm, parameter
from lpm_jax.models.remat import PROJECTIONS
from lpm_jax.models.spread import gather_into, scatter_from
from lpm_jax.parallel import layout

KERNELS = ("dense", "splash", "chunk", "cudnn")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes of the transformer; the defaults are the `puppets` scale.

  Args:
    width: model width D.
    heads: attention heads K.
    layers: blocks, an even number (speak and listen blocks alternate).
    hidden: inner width of the feed-forward layer.
    channels: latent channels C.
    patch: rows and columns of latents in one token.
    text_width: D_text.
    audio_width: D_audio.
    speak_window: latent frames before and after that a speak block hears.
    listen_window: the same for a listen block; 12 latent frames are 2 s.
    offsets: temporal indices of references.
    remat: what the backward pass keeps of a pair of blocks: "none" keeps everything, otherwise a
      name of remat.POLICIES.
    dtype: of the computation; parameters are fp32.
    chip: whose block sizes the kernels for TPUs take, one of flash.BLOCKS.
    exchange: how devices that share the tokens of a clip attend, one of context.EXCHANGES.
    attention: one of KERNELS: "dense"; "splash" on TPUs, for training, also on streams; "chunk" on
      TPUs, for streams, which reads caches where they lie, has no gradient and is dense without a
      cache; "cudnn" on GPUs.
  """

  width: int = 192
  heads: int = 3
  layers: int = 8
  hidden: int = 512
  channels: int = 16
  patch: tuple[int, int] = (2, 2)
  text_width: int = 128
  audio_width: int = 128
  speak_window: tuple[int, int] = (1, 1)
  listen_window: tuple[int, int] = (12, 2)
  offsets: ReferenceOffsets = ReferenceOffsets()
  remat: str = "none"
  dtype: str = "float32"
  attention: str = "dense"
  exchange: str = "ulysses"
  chip: str = "v5p"

  def __post_init__(self):
    for name, known in (("exchange", EXCHANGES), ("attention", KERNELS), ("chip", tuple(BLOCKS))):
      if getattr(self, name) not in known:
        raise ValueError(f"{name}: found {getattr(self, name)!r}, expected one of {known}")

  def heard_before(self) -> int:
    """Latent frames that the widest audio branch looks back."""
    return max(self.speak_window[0], self.listen_window[0])

  @classmethod
  def lpm_17b(cls) -> "TransformerConfig":
    """The published size: Wan2.1-14B with audio K, V and O of 5120 x 5120 in all 40 blocks."""
    return cls(
      width=5120,
      heads=40,
      layers=40,
      hidden=13824,
      text_width=4096,
      audio_width=5120,
      remat="attention",
      dtype="bfloat16",
    )


Kept = tuple[Array, Array]  # keys before rotation and values [B, K, G, N, d] of a block's tokens
Past = tuple[Array, Array] | Source  # the same of a cache, but turned; or all blocks of it


@dataclasses.dataclass
class Stream:
  """What all blocks share: rotary angles, what tokens look at, and the embedded text.

  A chunk that looks at caches and has one modulation comes folded: its tokens [B, F, N, D] are one
  sequence [B, 1, S, D], S at least F N, so that products and devices do not part it by frames.

  Attributes:
    turn: of the tokens of this call, [B, G N, d]; zeros follow where a sequence is longer.
    grids: of this call, without caches.
    text: [B, L, D].
    frames: latent frames of video, the rest of a sequence are references.
    tokens: of a grid.
    seen: bool [B, cached + G], with caches: grids that every token looks at, cached ones first.
    audible: bool [F, frames of audio]: hides what is not heard yet.
  """

  turn: rotary.Turn
  grids: Grids
  text: Array
  frames: int
  tokens: int
  seen: Array | None = None
  audible: Array | None = None

  @property
  def mask(self) -> Array:
    """Which tokens are looked at, with caches: bool [B, 1, 1, T]."""
    return jnp.repeat(self.seen, self.tokens, axis=1)[:, None, None]

  def grid_turn(self) -> rotary.Turn:
    """`turn` by grids, [B, G, N, d]."""
    grids = self.grids.present.shape[1]
    return tuple(rearrange(x, "b (g n) d -> b g n d", g=grids) for x in self.turn)

  def frame_of(self, x_bgnd: Array) -> Array:
    """Frame of each video token: int32 [F, 1], of folded ones [1, S]; what pads is of the last."""
    if x_bgnd.shape[2] == self.tokens:
      return jnp.arange(self.frames)[:, None]
    return jnp.minimum(jnp.arange(x_bgnd.shape[2]) // self.tokens, self.frames - 1)[None]

  def unfolded(self, x: Array) -> Array:
    """[B, F, N, D] of folded tokens or of such as are not."""
    return rearrange(x, "b g n d -> b (g n) d")[:, : self.frames * self.tokens].reshape(
      len(x), self.frames, self.tokens, -1
    )


class SelfAttention(nnx.Module):
  """Attention over video and reference tokens; q and k are RMS-normalised over the full width."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    dense = functools.partial(_dense, config, rngs)
    self.heads, self.exchange, self.chip = config.heads, config.exchange, config.chip
    self.attention = config.attention
    self.query, self.key, self.value = dense(), dense(), dense()
    self.out = dense(axes=("heads", "embed"))
    self.query_norm, self.key_norm = RMSNorm(config.width), RMSNorm(config.width)

  def __call__(
    self, x_bgnd: Array, stream: Stream, past: Sequence[Past] = ()
  ) -> tuple[Array, Kept]:
    """x [B, G, N, D] and what caches hold -> [B, G, N, D], keys and values of x."""
    query, key, value = (
      checkpoint_name(x, PROJECTIONS)
      for x in gather_into(x_bgnd, (self.query, self.key, self.value))
    )
    query, key = self.query_norm(query), self.key_norm(key)
    if past:
      ways = {"chunk": self._over_caches, "splash": self._over_slices}
      over = ways.get(self.attention, self._over_joined)
      seen, kept = over(query, key, value, stream, past)
      return scatter_from([seen], [self.out]), kept
    kept = tuple(_heads_first(x, self.heads) for x in (key, value))
    query, key, value = (_heads(x, self.heads) for x in (query, key, value))
    query, key = (rotary.rotate(x, stream.grid_turn(), heads=3) for x in (query, key))
    seen = attend_grids(
      query,
      key,
      value,
      stream.grids,
      kernel=_without_caches(self.attention),
      exchange=self.exchange,
      chip=self.chip,
    )
    return scatter_from([_join(seen)], [self.out]), kept

  def _over_joined(
    self, query: Array, key: Array, value: Array, stream: Stream, past: Sequence[Kept]
  ) -> tuple[Array, Kept]:
    """Dense attention over caches and the chunk itself, joined; all arrays are like x."""
    shape = query.shape
    kept = tuple(_heads_first(stream.unfolded(x), self.heads) for x in (key, value))
    query, key, value = (
      rearrange(x, "b g n (k d) -> b (g n) k d", k=self.heads) for x in (query, key, value)
    )
    query, key = (rotary.rotate(x, stream.turn) for x in (query, key))
    keys, values = (
      jnp.concatenate([*(rearrange(x[i], "b k g n d -> b (g n) k d") for x in past), own], axis=1)
      for i, own in enumerate((key, value))
    )
    kernel = "cudnn" if self.attention == "cudnn" else "dense"
    return attend(query, keys, values, mask=stream.mask, kernel=kernel).reshape(shape), kept

  def _over_caches(
    self, query: Array, key: Array, value: Array, stream: Stream, past: Sequence[Source]
  ) -> tuple[Array, Kept]:
    """The same by a kernel that reads caches where they lie."""
    first, turned, kept = self._for_caches(query, key, value, stream)
    seen = chunk_attend(first, [*past, source_of(turned, kept[1])], stream.seen)
    return _over_tokens(seen, query.shape[1]), kept

  def _over_slices(
    self, query: Array, key: Array, value: Array, stream: Stream, past: Sequence[Kept]
  ) -> tuple[Array, Kept]:
    """The same by a kernel that has a gradient, of caches [B, K, G, N, d] of this block."""
    first, turned, kept = self._for_caches(query, key, value, stream)
    keys, values = zip(*past, (turned, kept[1]), strict=True)
    seen = attend_cached(first, keys, values, stream.seen, kernel=self.attention, chip=self.chip)
    return _over_tokens(seen, query.shape[1]), kept

  def _for_caches(
    self, query: Array, key: Array, value: Array, stream: Stream
  ) -> tuple[Array, Array, Kept]:
    """Heads in place of tokens: turned queries [B, K, S, d] and keys, and what is kept."""
    length = stream.frames * stream.tokens
    query, key, value = (self._tokens_for_heads(x) for x in (query, key, value))
    query, turned = (rotary.rotate(x, stream.turn, heads=1) for x in (query, key))
    key, turned, value = (
      rearrange(x[:, :, :length], "b k (g n) d -> b k g n d", g=stream.frames)
      for x in (key, turned, value)
    )
    return query, turned, (key, value)

  def _tokens_for_heads(self, x: Array) -> Array:
    """[B, G, N, D], tokens over `context`, -> [B, K, G N, d], heads over it too."""
    x = rearrange(x, "b g n (k d) -> b k (g n) d", k=self.heads)
    return layout.constrain(x, "batch", "cached", None, None)


class TextAudioAttention(nnx.Module):
  """Text and audio cross-attention in parallel: shared query, separate K, V and O, outputs summed.

  Only video tokens ask: a reference has no time to hear at and no action to follow. Queries and
  audio keys are turned by time, one step an audio token, so that a frame tells now from just
  before. The audio values start at zero and the audio output has no bias: until it is trained the
  audio branch adds nothing.
  """

  def __init__(
    self,
    config: TransformerConfig,
    window: tuple[int, int],
    *,
    rngs: nnx.Rngs,
  ):
    dense = functools.partial(_dense, config, rngs)
    self.heads, self.window = config.heads, window
    self.attention, self.chip = config.attention, config.chip
    self.query, self.query_norm = dense(), RMSNorm(config.width)
    self.text_key, self.text_value = dense(), dense()
    self.text_key_norm = RMSNorm(config.width)
    self.text_out = dense(axes=("heads", "embed"))
    self.audio_key = dense(width=config.audio_width)
    self.audio_value = dense(width=config.audio_width, init=nnx.initializers.zeros)
    self.audio_key_norm = RMSNorm(config.width)
    self.audio_out = dense(axes=("heads", "embed"), bias=False)

  def __call__(self, x_bfnd: Array, audio: Array, stream: Stream, cached: bool = False) -> Array:
    """x [B, F, N, D] or folded, audio [B, past + F, A, D_audio] -> the shape of x.

    `cached` says that the call looks at caches.
    """
    frames, per_frame = stream.frames, audio.shape[2]
    past = audio.shape[1] - frames
    (query,) = gather_into(x_bfnd, (self.query,))
    query = self.query_norm(query)
    text_key = self.text_key_norm(self.text_key(stream.text))
    text_value = self.text_value(stream.text)
    if cached and self.attention == "chunk":
      seen = self._over_text(query, text_key, text_value)
    else:
      heads = (_heads(x, self.heads) for x in (query, text_key, text_value))
      dense = cached and self.attention != "splash"
      kernel = "dense" if dense else _without_caches(self.attention)
      seen = _join(attend_from_video(*heads, kernel=kernel, chip=self.chip))
    query = _heads(query, self.heads)
    audio = rearrange(audio, "b f a d -> b (f a) d")
    audio_key = _heads(self.audio_key_norm(self.audio_key(audio)), self.heads)
    frame = stream.frame_of(x_bfnd)
    key_time = jnp.arange((past + frames) * per_frame) - per_frame + 1
    head = query.shape[-1]
    mask = window_mask(frames, per_frame, *self.window, past=past)
    if stream.audible is not None:
      mask = mask & jnp.repeat(stream.audible, per_frame, axis=1)
    query_turn = rotary.turn(rotary.angles((past + frame) * per_frame, head)[None])
    heard = attend_from_video(
      rotary.rotate(query, query_turn, heads=3),
      rotary.rotate(audio_key, rotary.turn(rotary.angles(key_time, head)[None])),
      _heads(self.audio_value(audio), self.heads),
      mask=mask[frame],
    )
    return scatter_from([seen, _join(heard)], (self.text_out, self.audio_out))

  def _over_text(self, query: Array, key: Array, value: Array) -> Array:
    """The kernel of streams for queries [B, G, N, D] and one grid of keys and values [B, L, D]."""
    first = rearrange(query, "b g n (k d) -> b k (g n) d", k=self.heads)
    key, value = (rearrange(x, "b l (k d) -> b k 1 l d", k=self.heads) for x in (key, value))
    seen = chunk_attend(
      first, [source_of(key, value)], jnp.ones((len(query), 1), bool), apart="queries"
    )
    return rearrange(seen, "b k (g n) d -> b g n (k d)", g=query.shape[1])


class SpreadFeedForward(FeedForward):
  """The feed-forward layer of tokens [B, G, N, D] that lie apart over a mesh."""

  def __call__(self, x: Array) -> Array:
    (inner,) = gather_into(x, [self.up])
    return scatter_from([nnx.gelu(inner, approximate=True)], [self.down])


class Block(nnx.Module):
  """One block of figure 5: self-attention, text and audio, feed-forward; AdaLN per latent frame.

  Args:
    config: sizes.
    window: latent frames before and after that the audio branch hears.
  """

  def __init__(self, config: TransformerConfig, window: tuple[int, int], *, rngs: nnx.Rngs):
    table = jax.random.normal(rngs.params(), (6, config.width)) / config.width**0.5
    self.modulation = parameter(table, (None, "embed"))
    self.self_attention = SelfAttention(config, rngs=rngs)
    self.cross_norm = LayerNorm(config.width)
    self.cross_attention = TextAudioAttention(config, window, rngs=rngs)
    self.feed_forward = SpreadFeedForward(
      config.width, config.hidden, dtype=jnp.dtype(config.dtype), rngs=rngs
    )

  def __call__(
    self,
    x_bgnd: Array,
    modulation: Array,
    audio: Array,
    stream: Stream,
    past: Sequence[Past] = (),
  ) -> tuple[Array, Kept]:
    """x [B, F + R, N, D], modulation fp32 [B, F + R, 6, D], audio [B, past + F, A, D_audio].

    Folded tokens have one modulation, [B, 1, 6, D]. Returns x and its keys and values; `past` are
    those of the caches.
    """
    table = modulation + self.modulation[...]
    shift1, scale1, gate1, shift2, scale2, gate2 = (table[:, :, None, i] for i in range(6))

    normed = modulate(x_bgnd, shift1, scale1)
    attended, kept = self.self_attention(normed, stream, past)
    x_bgnd = x_bgnd + (gate1 * attended).astype(x_bgnd.dtype)

    video, references = x_bgnd[:, : stream.frames], x_bgnd[:, stream.frames :]
    normed = self.cross_norm(video)
    video = video + self.cross_attention(normed, audio, stream, bool(past))
    x_bgnd = jnp.concatenate([video, references], axis=1)

    normed = modulate(x_bgnd, shift2, scale2)
    return x_bgnd + (gate2 * self.feed_forward(normed)).astype(x_bgnd.dtype), kept


class BlockPair(nnx.Module):
  """An even block, which hears its own speech, and an odd block, which hears the partner's."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.speak = Block(config, config.speak_window, rngs=rngs)
    self.listen = Block(config, config.listen_window, rngs=rngs)


def _without_caches(attention: str) -> str:
  """The kernel of calls that look at no cache."""
  return "dense" if attention == "chunk" else attention


def _dense(
  config: TransformerConfig,
  rngs: nnx.Rngs,
  *,
  width: int | None = None,
  axes: tuple[str, str] = ("embed", "heads"),
  **options,
) -> Linear:
  dtype = jnp.dtype(config.dtype)
  return Linear(width or config.width, config.width, axes=axes, dtype=dtype, rngs=rngs, **options)


def _heads(x: Array, heads: int) -> Array:
  """[..., D] -> [..., K, d]."""
  return rearrange(x, "... (k d) -> ... k d", k=heads)


def _join(x: Array) -> Array:
  """[..., K, d] -> [..., D]."""
  return rearrange(x, "... k d -> ... (k d)")


def _over_tokens(seen: Array, folds: int) -> Array:
  """What caches' heads saw [B, K, G N, d] -> [B, G, N, D], tokens where they lay."""
  seen = rearrange(seen, "b k (g n) d -> b g n (k d)", g=folds)
  return layout.constrain(seen, "batch", None, "queries", "heads")


def _heads_first(x_bgnd: Array, heads: int) -> Array:
  return rearrange(x_bgnd, "b g n (k d) -> b k g n d", k=heads)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
  """AdaLN: layer norm without parameters, scaled and shifted."""
  return (layer_norm(x) * (1.0 + scale) + shift).astype(x.dtype)
