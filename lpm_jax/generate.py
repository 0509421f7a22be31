"""Offline generation: picture, references, two audio tracks and text -> video of any length.

Everything runs in batches through the same few compiled functions, whether one long video is made
or hundreds of clips are measured.
"""

import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.clip import LABELS_OF_KIND, Clip, audio_samples, fitted_audio, fitted_rows
from data_pipelines.features import FrozenEncoders, load_encoders
from lpm_jax import media
from lpm_jax.diffusion.continuation import (
  SampleWindow,
  Window,
  continue_video,
  covered,
  plan_windows,
)
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.diffusion.solvers import SOLVERS, sample
from lpm_jax.media import Reference
from lpm_jax.models.audio import FRAMES_PER_LATENT
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.models.pixels import from_pixels, to_pixels
from lpm_jax.models.text import tokenize
from lpm_jax.models.vae import VAECache, VideoVAE
from lpm_jax.weights import loading

TimedTexts = Sequence[tuple[float, str]]
_GLOBAL = 0
_SAMPLER = ("steps", "solver", "shift", "text_guidance", "audio_guidance", "temperature")


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
  """How videos are made.

  Attributes:
    steps: evaluations of the model per window.
    solver: a name in `diffusion.solvers.SOLVERS`.
    shift: timestep shift, as in training.
    text_guidance, audio_guidance: strengths; 1 and 1 need a third of the work.
    temperature: standard deviation of the noise that windows begin with; training has 1. Less is
      calmer and nearer to sound and picture, and less varied: docs/decisions.md.
    window: latent frames of a window: the length the model was trained on.
    overlap: latents that a later window is given clean; 2 to 5 are trained.
    blend: further latents that two windows share and cross-fade.
    references: slots for reference pictures; empty ones are masked.
    batch: clips made at once by `generate_batch`.
    seed: of the noise.
  """

  steps: int = 20
  solver: str = "unipc"
  shift: float = 3.0
  text_guidance: float = 1.5
  audio_guidance: float = 1.5
  temperature: float = 1.0
  window: int = 19
  overlap: int = 3
  blend: int = 1
  references: int = sum(LABELS_OF_KIND)
  batch: int = 4
  seed: int = 0

  def __post_init__(self):
    for field in ("steps", "references", "batch"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}: found {getattr(self, field)}, expected at least 1")
    if not 0.0 <= self.temperature <= 1.0:
      raise ValueError(f"temperature: found {self.temperature}, expected a number in [0, 1]")
    if self.solver not in SOLVERS:
      raise ValueError(f"solver: found {self.solver!r}, expected one of {sorted(SOLVERS)}")
    plan_windows(self.window + 1, self.window, self.overlap, self.blend)

  def sampler(self) -> dict[str, int | float | str]:
    """The part that a compiled window depends on."""
    return {name: getattr(self, name) for name in _SAMPLER}


@dataclasses.dataclass(frozen=True)
class _Script:
  """One video to be made: pictures uint8 [1 + R, H, W, 3], the main one first; audio [S]."""

  pictures: np.ndarray
  kind: np.ndarray
  label: np.ndarray
  speak_audio: np.ndarray
  listen_audio: np.ndarray
  texts: TimedTexts
  key: Array


class Generator:
  """Makes videos with a Base model and its autoencoder.

  Args:
    lpm: the model.
    vae: the autoencoder whose latents it was trained on.
    settings: solver, guidance, windows.
    frozen: the encoders whose features the model was trained on; those with encoders of their own
      need none. Raises ValueError when it is missing.
  """

  def __init__(
    self,
    lpm: LPM,
    vae: VideoVAE,
    settings: GenerateSettings | None = None,
    frozen: FrozenEncoders | None = None,
  ):
    if (lpm.config.frozen_text or lpm.config.frozen_audio) and frozen is None:
      raise ValueError("frozen: none given: this model reads features of frozen encoders")
    self.settings = settings or GenerateSettings()
    self._frozen_text = frozen if lpm.config.frozen_text else None
    self._frozen_audio = frozen if lpm.config.frozen_audio else None
    self.fps = lpm.config.audio.fps
    self._text_length = lpm.config.text.length
    self._vae = vae
    self._lpm_graph, self._lpm_state = nnx.split(lpm)
    self._vae_graph, self._vae_state = nnx.split(vae)

  def generate(
    self,
    first_frame: np.ndarray,
    references: Sequence[Reference],
    speak_audio: np.ndarray,
    listen_audio: np.ndarray,
    texts: TimedTexts,
    seconds: float,
    seed: int | None = None,
  ) -> np.ndarray:
    """One video of any length, with a progress bar: uint8 [round(seconds * fps), H, W, 3].

    The same arguments give the same frames, bit for bit.

    Args:
      first_frame: main picture uint8 [H, W, 3]; also the global reference when none is given, since
        a later window sees no other picture of the character.
      references: pictures of the shape of `first_frame`.
      speak_audio, listen_audio: float32 [S] mono 16 kHz; silence follows where one ends too early.
      texts: (start in seconds, text), rising; each window follows the one that holds longest in it.
      seconds: length of the video.
      seed: of the noise; by default the one of the settings.
    """
    frames = max(1, round(seconds * self.fps))
    key = jax.random.key(self.settings.seed if seed is None else seed)
    script = self._script(first_frame, references, speak_audio, listen_audio, texts, key)
    parts = []
    with tqdm(total=frames, desc="generate", unit="frame", disable=None) as bar:
      for part in self._perform([script], frames):
        parts.append(part)
        bar.update(min(part.shape[1], frames - bar.n))
    return np.concatenate(parts, axis=1)[0, :frames]

  def generate_batch(self, clips: Sequence[Clip]) -> list[np.ndarray]:
    """Videos uint8 [T, H, W, 3] under the conditions of clips (first frame, references, ...).

    Works in batches of `settings.batch` clips of one length, the last one filled up, so that every
    length compiles once. The noise of a clip depends on the seed and its clip_id, not on its
    neighbours.
    """
    videos: dict[int, np.ndarray] = {}
    for frames in sorted({len(clip.video) for clip in clips}):
      alike = [i for i, clip in enumerate(clips) if len(clip.video) == frames]
      for start in range(0, len(alike), self.settings.batch):
        chosen = alike[start : start + self.settings.batch]
        filled = chosen + chosen[-1:] * (self.settings.batch - len(chosen))
        parts = self._perform([self._clip_script(clips[i]) for i in filled], frames)
        made = np.concatenate(list(parts), axis=1)[:, :frames]
        videos |= dict(zip(chosen, made, strict=False))
    return [videos[i] for i in range(len(clips))]

  def _clip_script(self, clip: Clip) -> _Script:
    if clip.fps != self.fps:
      raise ValueError(f"clip {clip.clip_id!r}: fps: found {clip.fps}, expected {self.fps}")
    references = [
      Reference(*each)
      for each in zip(clip.references, clip.reference_kind, clip.reference_label, strict=True)
    ]
    key = jax.random.key(self.settings.seed)
    return self._script(
      clip.video[0],
      references,
      clip.speak_audio,
      clip.listen_audio,
      [(0.0, clip.text)],
      jax.random.fold_in(key, zlib.crc32(clip.clip_id.encode())),
    )

  def _script(
    self,
    first_frame: np.ndarray,
    references: Sequence[Reference],
    speak_audio: np.ndarray,
    listen_audio: np.ndarray,
    texts: TimedTexts,
    key: Array,
  ) -> _Script:
    if all(reference.kind != _GLOBAL for reference in references):
      references = [Reference(first_frame, _GLOBAL, 0), *references]
    slots = self.settings.references
    if len(references) > slots:
      raise ValueError(f"references: found {len(references)}, expected at most {slots}")
    pictures = np.zeros((1 + slots, *first_frame.shape), np.uint8)
    kind, label = np.full(slots, -1, np.int32), np.zeros(slots, np.int32)
    pictures[0] = first_frame
    for i, reference in enumerate(references):
      if reference.picture.shape != first_frame.shape:
        found, expected = reference.picture.shape, first_frame.shape
        raise ValueError(
          f"reference {i}: found shape {found}, expected the first frame's {expected}"
        )
      pictures[1 + i], kind[i], label[i] = reference
    return _Script(pictures, kind, label, speak_audio, listen_audio, texts, key)

  def _perform(self, scripts: Sequence[_Script], frames: int) -> Iterator[np.ndarray]:
    """Frames uint8 [B, n, H, W, 3] as they are settled, at least `frames` in all."""
    total = -(-(frames - 1) // FRAMES_PER_LATENT) + 1
    settings = self.settings
    windows = plan_windows(total, settings.window, settings.overlap, settings.blend)
    sample_window, first = self._prepare(scripts, covered(windows))
    keys = jnp.stack([script.key for script in scripts])
    pieces = continue_video(sample_window, first, windows, keys)
    # The stream of the decoder gives the same frames in bounded memory, but takes longer.
    if len(windows) == 1:
      yield np.asarray(_decode(self._vae_graph, self._vae_state, next(pieces)))
      return
    cache = self._vae.init_decode_cache(*first.shape[:1], *first.shape[2:4])
    for piece in pieces:
      for i in range(piece.shape[1]):
        latent = piece[:, i : i + 1]
        video, cache = _decode_step(self._vae_graph, self._vae_state, latent, cache)
        yield np.asarray(video)

  def _prepare(self, scripts: Sequence[_Script], latents: int) -> tuple[SampleWindow, Array]:
    """The sampler of windows for these scripts, and their first latents [B, 1, h, w, C]."""
    pictures = np.concatenate([script.pictures for script in scripts])
    encoded = _encode_pictures(self._vae_graph, self._vae_state, pictures)
    encoded = encoded.reshape(len(scripts), -1, *encoded.shape[2:])
    first, references = encoded[:, :1], encoded[:, 1:]
    samples = audio_samples(FRAMES_PER_LATENT * (latents - 1) + 1, self.fps)
    # Encoded once as a whole: a window in the middle hears the true past before its first frame.
    heard = (
      self._heard(np.stack([fitted_audio(audio, samples) for audio in track]))
      for track in zip(*((s.speak_audio, s.listen_audio) for s in scripts), strict=True)
    )
    speak, listen = _encode_audio(self._lpm_graph, self._lpm_state, *heard, latents)
    kind = np.stack([script.kind for script in scripts])
    label = np.stack([script.label for script in scripts])

    def sample_window(window: Window, known: Array, keys: Array) -> Array:
      texts = [self._text(script.texts, window) for script in scripts]
      heard = (track[:, window.start : window.stop] for track in (speak, listen))
      missing = window.length - window.known
      return _sample_window(
        self._lpm_graph,
        self._lpm_state,
        np.stack(texts),
        Conditions(None, *heard, references, kind, label),
        jnp.pad(known, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))),
        np.arange(window.length) < window.known,
        keys,
        **self.settings.sampler(),
      )

    return sample_window, first

  def _heard(self, tracks: np.ndarray) -> np.ndarray:
    """What the audio encoder of the model takes: waveforms [B, S], or their frozen features."""
    return self._frozen_audio.hear(tracks) if self._frozen_audio else tracks

  def _text(self, texts: TimedTexts, window: Window) -> np.ndarray:
    """Tokens, or frozen features, of the text that holds longest while new frames are made."""
    begin = (FRAMES_PER_LATENT * (window.fresh - 1) + 1) / self.fps
    end = (FRAMES_PER_LATENT * (window.stop - 1) + 1) / self.fps
    text = text_between(texts, begin, end)
    if self._frozen_text:
      return fitted_rows(self._frozen_text.read(text), self._text_length)
    return tokenize(text, self._text_length)


def text_between(texts: TimedTexts, begin: float, end: float) -> str:
  """The text that holds longest between two times in seconds; "" when there is none."""
  stops = [start for start, _ in texts[1:]] + [np.inf]
  held = [
    min(end, stop) - max(begin, start) for (start, _), stop in zip(texts, stops, strict=False)
  ]
  return texts[int(np.argmax(held))][1] if held and max(held) > 0 else ""


@functools.partial(jax.jit, static_argnums=0)
def _encode_pictures(graphdef: nnx.GraphDef, state: nnx.State, pictures: Array) -> Array:
  """uint8 [N, H, W, 3] -> latents [N, 1, h, w, C], each as a video of one frame."""
  vae = nnx.merge(graphdef, state)
  return vae.encode(from_pixels(pictures[:, None]))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode_audio(
  graphdef: nnx.GraphDef, state: nnx.State, speak: Array, listen: Array, latents: int
) -> tuple[Array, Array]:
  """Waveforms [B, S] -> tokens [B, latents, A, D_audio] of both tracks."""
  lpm = nnx.merge(graphdef, state)
  return lpm.speak(speak, latents), lpm.listen(listen, latents)


@functools.partial(
  jax.jit,
  static_argnums=0,
  static_argnames=_SAMPLER,
)
def _sample_window(
  graphdef: nnx.GraphDef,
  state: nnx.State,
  text: Array,
  conditions: Conditions,
  known: Array,
  given: Array,
  keys: Array,
  *,
  steps: int,
  solver: str,
  shift: float,
  text_guidance: float,
  audio_guidance: float,
  temperature: float,
) -> Array:
  """One window; `known` [B, length, h, w, C] is held where `given` bool [length] says so.

  `text` is what the text encoder takes: tokens or features.
  """
  lpm = nnx.merge(graphdef, state)
  conditions = conditions.replace(text=lpm.text(text))
  velocity = guided_velocity(lpm, conditions, text_guidance, audio_guidance)
  noise = temperature * jax.vmap(lambda key: jax.random.normal(key, known.shape[1:]))(keys)
  mask = jnp.broadcast_to(given, known.shape[:2])
  return sample(velocity, noise, known, mask, steps=steps, shift=shift, solver=solver)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef: nnx.GraphDef, state: nnx.State, latents: Array) -> Array:
  return to_pixels(nnx.merge(graphdef, state).decode(latents))


@functools.partial(jax.jit, static_argnums=0)
def _decode_step(
  graphdef: nnx.GraphDef, state: nnx.State, latent: Array, cache: VAECache
) -> tuple[Array, VAECache]:
  video, cache = nnx.merge(graphdef, state).decode_step(latent, cache)
  return to_pixels(video), cache


def generate_to_file(config: ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
  """`lpm generate`: reads what the config names, makes the video, writes it into `workdir`.

  Args:
    config: the fields of `media.Request`; `weights` (a folder for `loading.load_models`),
      `generation` (fields of `GenerateSettings`), `seed`, `output` (file name in `workdir`),
      `scale` (enlargement), and optionally `frozen` (see `features.load_encoders`).
    workdir: folder that is written.

  Returns:
    The path of the mp4. Its sound is stereo (left character, right partner) when both are heard,
    else mono.

  Raises:
    ValueError: an input is missing or cannot be used, weights do not fit, or the output cannot be
      written; the message names file or field. All of it is checked before the first step, and
      nothing half-written stays.
  """
  output = pathlib.Path(workdir) / config.output
  inputs = media.read_inputs(media.Request.from_config(config))
  settings = GenerateSettings(**config.generation)
  media.check_writable(output)
  frozen = load_encoders(config.frozen) if "frozen" in config else None
  generator = Generator(*loading.load_models(config.weights), settings, frozen)
  frames = generator.generate(
    inputs.picture,
    inputs.references,
    inputs.speak_audio,
    inputs.listen_audio,
    inputs.texts,
    inputs.seconds,
    config.seed,
  )
  audio = _sound(inputs, audio_samples(len(frames), generator.fps))
  media.write_video(output, frames, generator.fps, audio, scale=config.scale)
  print(f"{output}: {len(frames)} frames, {len(frames) / generator.fps:.2f} s")
  return output


def _sound(inputs: media.Inputs, samples: int) -> np.ndarray:
  """Stereo [S, 2] when both tracks are heard, otherwise mono [S]."""
  tracks = [fitted_audio(audio, samples) for audio in (inputs.speak_audio, inputs.listen_audio)]
  if any(media.is_silent(track) for track in tracks):
    return tracks[0] + tracks[1]
  return np.stack(tracks, axis=1)
