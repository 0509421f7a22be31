"""Online LPM with its encoders, compiled: sound and text in, pixels out, a second at a time."""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax import Array

from data_pipelines.clip import SAMPLE_RATE, audio_samples
from lpm_jax.models.audio import FRAMES_PER_LATENT
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.models.pixels import from_pixels, to_pixels
from lpm_jax.models.text import tokenize
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.models.vae import VideoVAE
from lpm_jax.streaming.effort import Effort, chunk, efforts
from lpm_jax.streaming.sampler import OnlineLPM, StreamSettings, StreamState

Labelled = tuple[np.ndarray, int, int]  # picture uint8 [H, W, 3], kind, label


@struct.dataclass
class Performance:
  """A stream and what its next chunk still hears of the past.

  Attributes:
    stream: state of the sampler.
    speak, listen: fp32 [past samples], the sound before the next chunk.
  """

  stream: StreamState
  speak: Array
  listen: Array


class Performer:
  """Makes one chunk after the other.

  A chunk is heard within a window: as much past as the widest audio branch looks back (2 s), and
  the chunk itself. Nothing later is needed, so the newest sound can be shown at once.

  Args:
    lpm: text and audio encoders, and the backbone.
    vae: the autoencoder of its latents.
    settings: levels and lengths of the stream.
    refiner: by default the backbone, which is right for a model that is not distilled.

  Raises ValueError for a model that reads features of frozen encoders, and for chunks that are no
  whole number of samples: sound and picture would drift apart.
  """

  def __init__(
    self,
    lpm: LPM,
    vae: VideoVAE,
    settings: StreamSettings | None = None,
    refiner: VideoTransformer | None = None,
  ):
    if lpm.config.frozen_text or lpm.config.frozen_audio:
      raise ValueError("lpm: a model of frozen encoders cannot stream yet")
    settings = settings or StreamSettings()
    past = lpm.config.transformer.heard_before()
    self.fps = lpm.config.audio.fps
    self.frames = FRAMES_PER_LATENT * settings.causal.frames
    self.samples = audio_samples(self.frames, self.fps)
    if self.samples * self.fps != self.frames * SAMPLE_RATE:
      raise ValueError(
        f"causal.frames: found {settings.causal.frames}, which is {self.frames} video frames and "
        f"no whole number of samples; expected a multiple of 3 at 24 fps"
      )
    self.first = audio_samples(1, self.fps)  # the sound of the main picture, before chunk 0
    self._text_length = lpm.config.text.length
    # A latent more than is looked at: its first three frames lie before the window.
    self._latents = 1 + past + settings.causal.frames
    self._past = audio_samples(FRAMES_PER_LATENT * past + 1, self.fps)
    online = OnlineLPM(lpm.transformer, refiner or lpm.transformer, vae, settings)
    self._lpm_graph, self._lpm = nnx.split(lpm)
    self._online_graph, self._online = nnx.split(online)
    # Compiled calls take the weights as a plain list: a module's tree is slow to walk, each chunk.
    self._weights, structure = jax.tree.flatten((self._lpm, self._online))
    graphs = self._lpm_graph, self._online_graph
    self.efforts = efforts(settings)
    self._steps = {
      effort: _compiled(graphs, structure, self._latents, effort) for effort in self.efforts
    }
    self.effort_seconds: dict[Effort, float] = {}
    self._texts: dict[str, Array] = {}

  def begin(
    self, picture: np.ndarray, references: Sequence[Labelled] = (), text: str = "", seed: int = 0
  ) -> tuple[Performance, np.ndarray]:
    """The state after the main picture, and the picture as it will be seen: uint8 [H, W, 3].

    Raises ValueError for pictures of differing shapes.
    """
    for i, (reference, *_) in enumerate(references):
      if reference.shape != picture.shape:
        raise ValueError(
          f"reference {i}: found shape {reference.shape}, expected the picture's {picture.shape}"
        )
    if not references:
      references = [(picture, 0, 0)]
    pictures = np.stack([picture, *(reference for reference, *_ in references)])
    kind, label = (np.array([[r[i] for r in references]], np.int32) for i in (1, 2))
    stream, frame = _begin(
      self._online_graph,
      self._online,
      pictures,
      kind,
      label,
      self._text(text),
      _encode_silence(self._lpm_graph, self._lpm),
      jax.random.key(seed),
    )
    silence = (jnp.zeros(self._past) for _ in range(2))
    return Performance(stream, *silence), np.asarray(frame)

  def warm_up(
    self,
    picture: np.ndarray,
    references: Sequence[Labelled] = (),
    efforts: Sequence[Effort] = (Effort.FULL,),
  ):
    """Compiles everything for pictures of this size and this many references.

    Afterwards `effort_seconds` has the time of a chunk of each of `efforts`.
    """
    performance, _ = self.begin(picture, references)
    performance = self.copied(performance)
    silence = np.zeros(self.samples, np.float32)
    for effort in efforts:
      for _ in range(3):  # the first compiles, the last is typical
        begun = time.perf_counter()
        performance, _, _ = self.step(performance, silence, silence, "", effort)
        self.effort_seconds[effort] = time.perf_counter() - begun

  def step(
    self,
    performance: Performance,
    speak: np.ndarray,
    listen: np.ndarray,
    text: str,
    effort: Effort = Effort.FULL,
  ) -> tuple[Performance, np.ndarray, bool]:
    """The next chunk; `performance` must not be used again.

    Args:
      performance: what the chunk before left.
      speak, listen: the chunk's own sound, [samples] each.
      text: what the character does.
      effort: how much work it gets; all but FULL need `len(settings.backbone)` > 1 or are COARSE.

    Returns:
      The state, frames uint8 [frames, H, W, 3], and whether all of the chunk is finite.
    """
    for name, sound in (("speak", speak), ("listen", listen)):
      if sound.shape != (self.samples,):
        raise ValueError(f"{name}: found shape {sound.shape}, expected ({self.samples},)")
    sounds = (np.asarray(sound, np.float32) for sound in (speak, listen))
    step = self._steps[effort]
    performance, frames, finite = step(self._weights, performance, *sounds, self._text(text))
    return performance, np.asarray(frames), bool(finite)

  def copied(self, performance: Performance) -> Performance:
    """The same state in memory of its own, which outlives a step from the other."""
    return _copied(performance)

  def compiled_steps(self) -> int:
    """How often steps of this performer, and of others of its shapes, were compiled."""
    return sum(step._cache_size() for step in self._steps.values())

  def _text(self, text: str) -> Array:
    """Text tokens encoded, [1, L, D_text]; the last one is kept."""
    if text not in self._texts:
      tokens = tokenize(text, self._text_length)[None]
      self._texts = {text: _encode_text(self._lpm_graph, self._lpm, tokens)}
    return self._texts[text]


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(graphdef: nnx.GraphDef, state: nnx.State, tokens: Array) -> Array:
  return nnx.merge(graphdef, state).text(tokens)


@functools.partial(jax.jit, static_argnums=0)
def _encode_silence(graphdef: nnx.GraphDef, state: nnx.State) -> tuple[Array, Array]:
  """One frame of both tracks, [1, 1, A, D_audio]."""
  lpm = nnx.merge(graphdef, state)
  return lpm.speak(jnp.zeros((1, 1)), 1), lpm.listen(jnp.zeros((1, 1)), 1)


@functools.partial(jax.jit, static_argnums=0)
def _begin(
  graphdef: nnx.GraphDef,
  state: nnx.State,
  pictures: Array,
  kind: Array,
  label: Array,
  text: Array,
  silence: tuple[Array, Array],
  key: Array,
) -> tuple[StreamState, Array]:
  online = nnx.merge(graphdef, state)
  latents = online.vae.encode(from_pixels(pictures[:, None]))[:, 0]
  conditions = Conditions(text, *silence, latents[None, 1:], kind, label)
  stream, frame = online.begin(latents[None, :1], conditions, key)
  return stream, to_pixels(frame)[0, 0]


@jax.jit
def _copied(performance: Performance) -> Performance:
  return jax.tree.map(jnp.copy, performance)


@functools.lru_cache(maxsize=16)
def _compiled(
  graphs: tuple[nnx.GraphDef, nnx.GraphDef],
  structure: jax.tree_util.PyTreeDef,
  latents: int,
  effort: Effort,
) -> Callable[..., tuple[Performance, Array, Array]]:
  """The step for one kind of model: performers that differ in their weights alone share it."""
  return jax.jit(functools.partial(_step, graphs, structure, latents, effort), donate_argnums=1)


def _step(
  graphs: tuple[nnx.GraphDef, nnx.GraphDef],
  structure: jax.tree_util.PyTreeDef,
  latents: int,
  effort: Effort,
  weights: list[Array],
  performance: Performance,
  speak: Array,
  listen: Array,
  text: Array,
) -> tuple[Performance, Array, Array]:
  states = jax.tree.unflatten(structure, weights)
  lpm, online = (nnx.merge(graph, state) for graph, state in zip(graphs, states, strict=True))
  tracks = {}
  for name, new in (("speak", speak), ("listen", listen)):
    heard = jnp.concatenate([getattr(performance, name), new])
    tracks[name] = getattr(lpm, name)(heard[None], latents)[:, 1:], heard[new.size :]
  nothing = jnp.zeros((1, 0, *performance.stream.shape[2:]))
  none = jnp.zeros((1, 0), jnp.int32)
  conditions = Conditions(text, tracks["speak"][0], tracks["listen"][0], nothing, none, none)
  stream, made, video = chunk(online, effort, performance.stream, conditions)
  performance = Performance(stream, tracks["speak"][1], tracks["listen"][1])
  return performance, to_pixels(video)[0], jnp.isfinite(made).all()
