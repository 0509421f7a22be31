"""The chunk step of Online LPM, and the sampler that scans it.

Backbone: noise -> a few evaluations -> coarse latents, looking at a noised history. Refiner: coarse
latents, noised again to a fixed level, -> one evaluation, looking at a clean history. The decoder
turns the result into frames in the same step. All state goes in and comes out as one pytree of
fixed shape, so one compiled step serves a live stream and, scanned, a whole file.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx, struct
from jax import Array

from lpm_jax.diffusion import flow
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.cache import KVCache, TurnedCache
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.models.vae import VAECache, VideoVAE
from lpm_jax.streaming.cache import StreamCache


@dataclasses.dataclass(frozen=True)
class StreamSettings:
  """Levels and lengths of a stream. LPM 1.0 publishes neither levels nor history noise: ours.

  Attributes:
    causal: chunk length, sink and window.
    backbone: timesteps of the backbone's evaluations, falling from 1: {T0, T1}.
    refiner: timestep to which its result is noised again: T2.
    history: timestep of the history that the backbone sees, made by one more evaluation; None: it
      sees what the last evaluation of each chunk left, at the level of that one, at no cost.
    temperature: standard deviation of the noise that is added at T1 and T2; training has 1. A model
      that is not perfect leaves some of it in the picture: docs/decisions.md.
  """

  causal: ChunkCausal = ChunkCausal()
  backbone: tuple[float, ...] = (1.0, 0.757)
  refiner: float = 0.522
  history: float | None = 0.1
  temperature: float = 1.0

  def __post_init__(self):
    falling = list(self.backbone) == sorted(set(self.backbone), reverse=True)
    if not self.backbone or self.backbone[0] != 1.0 or not falling or self.backbone[-1] <= 0:
      raise ValueError(f"backbone: found {self.backbone}, expected timesteps falling from 1.0")
    for name in ("refiner", "history"):
      level = getattr(self, name)
      if level is None and name == "history":
        continue
      if level is None or not 0.0 <= level < 1.0:
        raise ValueError(f"{name}: found {level}, expected a timestep in [0, 1)")
    if not 0.0 <= self.temperature <= 1.0:
      raise ValueError(f"temperature: found {self.temperature}, expected a number in [0, 1]")

  def evaluations(self) -> tuple[int, int]:
    """Forward passes of backbone and refiner for a chunk, those that fill the caches included."""
    return len(self.backbone) + (self.history is not None), 2

  def of_backbone(self) -> "Evaluations":
    """How the backbone makes a chunk."""
    return Evaluations(self.backbone, self.history, self.temperature)

  def of_refiner(self) -> "Evaluations":
    """How the refiner makes a chunk."""
    return Evaluations((self.refiner,), 0.0, self.temperature)


@dataclasses.dataclass(frozen=True)
class Evaluations:
  """How one transformer makes a chunk.

  Attributes:
    levels: timesteps at which it predicts the chunk clean, one after the other.
    history: timestep at which it then reads its result once more for its cache; None: the cache
      takes what the last evaluation left.
    temperature: standard deviation of the noise of levels below 1 (1 is noise alone).
  """

  levels: tuple[float, ...]
  history: float | None
  temperature: float = 1.0

  def noises(self, key: Array, shape: tuple[int, ...]) -> Array:
    """Noise of each evaluation of a chunk of `shape`, that of the history last; [n, *shape]."""
    scales = [1.0 if level == 1.0 else self.temperature for level in self.levels]
    scales += [1.0] * bool(self.history)
    noise = jax.random.normal(key, (len(scales), *shape))
    return noise * jnp.asarray(scales).reshape(-1, *[1] * len(shape))


@struct.dataclass
class StreamState:
  """Everything a stream carries from one chunk to the next.

  Attributes:
    backbone, refiner: caches of the two transformers.
    decoder: cache of the autoencoder.
    key: random key of the stream; chunk n draws from fold_in(key, n).
    shape: of the latents of a chunk, (B, frames, H, W, C).
  """

  backbone: StreamCache
  refiner: StreamCache
  decoder: VAECache
  key: Array
  shape: tuple[int, ...] = struct.field(pytree_node=False)

  def chunks(self) -> Array:
    """How many chunks the stream has had: int32 []."""
    return self.backbone.chunks

  def keys(self) -> Array:
    """Random keys of backbone and refiner for the next chunk, [2]."""
    return jax.random.split(jax.random.fold_in(self.key, self.chunks()))

  def axes(self) -> "StreamState":
    """Logical names of the axes, in place of the arrays."""
    parts = (part.axes() for part in (self.backbone, self.refiner, self.decoder))
    return StreamState(*parts, (), self.shape)


class OnlineLPM(nnx.Module):
  """Backbone, refiner and decoder as one streaming model.

  Args:
    backbone, refiner: transformers of one config.
    vae: the autoencoder of their latents.
    settings: levels and lengths.
  """

  def __init__(
    self,
    backbone: VideoTransformer,
    refiner: VideoTransformer,
    vae: VideoVAE,
    settings: StreamSettings | None = None,
  ):
    self.backbone, self.refiner, self.vae = backbone, refiner, vae
    self.settings = settings or StreamSettings()

  def begin(self, picture: Array, conditions: Conditions, key: Array) -> tuple[StreamState, Array]:
    """Warms all caches up with the main picture.

    Args:
      picture: clean latent of the main picture [B, 1, H, W, C].
      conditions: text, the references, and one frame of both tracks.
      key: random key of the stream.

    Returns:
      The state, and the picture as it is decoded: [B, 1, height, width, 3] in [-1, 1].
    """
    batch, _, height, width, _ = picture.shape
    decoder = self.vae.init_decode_cache(batch, height, width)
    frame, decoder = self.vae.decode_step(picture, decoder)
    caches = [
      StreamCache.empty(model.remember(picture, conditions), self.settings.causal)
      for model in (self.backbone, self.refiner)
    ]
    shape = (batch, self.settings.causal.frames, *picture.shape[2:])
    return StreamState(*caches, decoder, key, shape), frame

  def step(self, state: StreamState, conditions: Conditions) -> tuple[StreamState, Array, Array]:
    """The next chunk.

    Args:
      state: what the chunk before left.
      conditions: text; speak and listen [B, past + frames, A, D_audio], frames of audio before the
        chunk and its own. References are in the caches and not looked at.

    Returns:
      The state, latents [B, frames, H, W, C], video [B, 4 * frames, height, width, 3] in [-1, 1].
    """
    # Within barriers the compiler makes the same program of a step alone and of one in a scan.
    graphdef, model = nnx.split(self)
    barrier = jax.lax.optimization_barrier
    model, state, conditions = barrier((model, state, conditions.without_references()))
    return barrier(nnx.merge(graphdef, model)._chunk(state, conditions))

  def _chunk(self, state: StreamState, conditions: Conditions) -> tuple[StreamState, Array, Array]:
    noise, again = state.keys()
    coarse, backbone = coarse_latents(
      self.backbone, state.backbone, self.settings, conditions, noise, state.shape
    )
    refined, refiner = refined_latents(
      self.refiner, state.refiner, self.settings, conditions, again, coarse
    )
    video, decoder = decoded_video(self.vae, state.decoder, refined)
    return state.replace(backbone=backbone, refiner=refiner, decoder=decoder), refined, video

  def run(self, state: StreamState, chunks: Conditions) -> tuple[StreamState, Array, Array]:
    """Many chunks as one `lax.scan` of `step`, with the same bits as one at a time.

    Conditions, latents and video are [chunks, ...].
    """
    graphdef, model = nnx.split(self)

    def one(state: StreamState, conditions: Conditions) -> tuple[StreamState, tuple[Array, Array]]:
      state, *made = nnx.merge(graphdef, model).step(state, conditions)
      return state, tuple(made)

    state, (latents, video) = jax.lax.scan(one, state, chunks)
    return state, latents, video


def coarse_latents(
  backbone: VideoTransformer,
  cache: StreamCache,
  settings: StreamSettings,
  conditions: Conditions,
  key: Array,
  shape: tuple[int, ...],
) -> tuple[Array, StreamCache]:
  """Noise -> coarse latents of `shape`; the cache takes them in with the noise of the history."""
  how = settings.of_backbone()
  return _made(backbone, cache, how, conditions, how.noises(key, shape), jnp.zeros(shape))


def refined_latents(
  refiner: VideoTransformer,
  cache: StreamCache,
  settings: StreamSettings,
  conditions: Conditions,
  key: Array,
  coarse: Array,
) -> tuple[Array, StreamCache]:
  """Coarse latents -> latents; the cache takes them in clean."""
  how = settings.of_refiner()
  return _made(refiner, cache, how, conditions, how.noises(key, coarse.shape), coarse)


def _made(
  model: VideoTransformer,
  cache: StreamCache,
  how: Evaluations,
  conditions: Conditions,
  noises: Array,
  clean: Array,
) -> tuple[Array, StreamCache]:
  past = past_of(model, cache, clean.shape)
  for level, noise in zip(how.levels, noises, strict=False):
    clean, kept = evaluate(model, past, clean, noise, level, conditions)
  if how.history is not None:
    _, kept = evaluate(model, past, clean, noises[-1], how.history, conditions)
  return clean, cache.pushed(kept)


def decoded_video(vae: VideoVAE, cache: VAECache, latents: Array) -> tuple[Array, VAECache]:
  """Latents of a chunk, one at a time, -> video [B, 4 * frames, height, width, 3]."""
  graphdef, state = nnx.split(vae)

  def one(cache: VAECache, latent: Array) -> tuple[VAECache, Array]:
    video, cache = nnx.merge(graphdef, state).decode_step(latent[:, None], cache)
    return cache, video

  cache, video = jax.lax.scan(one, cache, jnp.moveaxis(latents, 1, 0))
  return rearrange(video, "f b t h w c -> b (f t) h w c"), cache


Past = tuple[Sequence[TurnedCache], Array]  # what a chunk sees, and where it stands


def past_of(model: VideoTransformer, cache: StreamCache, shape: tuple[int, ...]) -> Past:
  """The caches for all evaluations of a chunk of `shape`."""
  return [model.turned(view, *shape[2:4]) for view in cache.view()], cache.start()


def evaluate(
  model: VideoTransformer,
  past: Past,
  clean: Array,
  noise: Array,
  level: float | Array,
  conditions: Conditions,
) -> tuple[Array, KVCache]:
  """Noises latents to a timestep and predicts them clean; also what they leave behind there."""
  t = jnp.full((len(clean), 1), level)
  noisy = flow.add_noise(clean, noise, t)
  velocity, kept = model.extend(noisy, t, conditions, *past)
  return flow.velocity_to_clean(noisy, velocity, t), kept


def audio_chunks(track: Array, frames: int, past: int) -> Array:
  """Audio tokens [B, 1 + n * frames, A, D] as `step` takes them: [n, B, past + frames, A, D].

  The first frame belongs to the main picture; each chunk has `past` frames before it, zeros before
  the stream's beginning, which nothing hears.
  """
  padded = jnp.pad(track, ((0, 0), (past - 1, 0), (0, 0), (0, 0)))
  count = (track.shape[1] - 1) // frames
  cut = lambda c: jax.lax.dynamic_slice_in_dim(padded, c * frames, past + frames, 1)  # noqa: E731
  return jnp.stack([cut(c) for c in range(count)])
