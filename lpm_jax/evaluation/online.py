"""Online LPM as a system of an evaluation: every clip is streamed as a live session would.

It is given what Base is: first frame, references, both tracks, text. Sound comes a chunk at a time
with the window of past that serving keeps; nothing later is heard.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.clip import SAMPLE_RATE, Clip, fitted_audio
from data_pipelines.puppets.references import GLOBAL
from lpm_jax.generate import TimedTexts, text_between
from lpm_jax.streaming.performer import Labelled, Performer
from lpm_jax.streaming.sampler import StreamSettings
from lpm_jax.weights.loading import StreamModels

ONLINE = "online"  # in `config.systems`: the stream of `config.weights`, or all of `config.online`
_EMPTY = -1  # kind of a slot that holds no reference


class OnlineSystem:
  """Streams clips one after the other; begin and step compile once, whatever their references.

  Args:
    models: of `loading.load_stream`.
    settings: levels and lengths of the stream.
    references: slots for reference pictures; empty ones are masked.
    seed: of the noise, which depends on the clip_id as well.
  """

  def __init__(
    self, models: StreamModels, settings: StreamSettings, *, references: int, seed: int = 0
  ):
    self.performer = Performer(models.lpm, models.vae, settings, models.refiner)
    self._slots, self._seed = references, seed

  def __call__(self, clips: Sequence[Clip]) -> list[np.ndarray]:
    """Videos uint8 [T, H, W, 3]. Raises ValueError for another frame rate than the model's."""
    return [self._play(clip) for clip in clips]

  def _play(self, clip: Clip) -> np.ndarray:
    if clip.fps != self.performer.fps:
      raise ValueError(
        f"clip {clip.clip_id!r}: fps: found {clip.fps}, expected {self.performer.fps}"
      )
    labels = (map(int, labels) for labels in (clip.reference_kind, clip.reference_label))
    return self.stream(
      clip.video[0],
      list(zip(clip.references, *labels, strict=True)),
      clip.speak_audio,
      clip.listen_audio,
      [(0.0, clip.text)],
      len(clip.video),
      zlib.crc32(f"{self._seed} {clip.clip_id}".encode()) >> 1,
    )

  def stream(
    self,
    picture: np.ndarray,
    references: Sequence[Labelled],
    speak_audio: np.ndarray,
    listen_audio: np.ndarray,
    texts: TimedTexts,
    frames: int,
    seed: int,
  ) -> np.ndarray:
    """One video uint8 [frames, H, W, 3]: the picture as it is decoded, then chunks, the last cut.

    Args:
      picture: main picture uint8 [H, W, 3]; also the global reference when none is given.
      references: pictures of its shape with kind and label.
      speak_audio, listen_audio: float32 [S] at 16 kHz; silence follows where one ends too early.
      texts: (start in seconds, text), rising; a chunk follows the one that holds longest in it.
      frames: length of the video.
      seed: of the noise.
    """
    performer, slots = self.performer, self._filled(picture, references)
    opening = text_between(texts, 0.0, 1 / performer.fps)
    performance, first = performer.begin(picture, slots, opening, seed)
    made = [first[None]]
    for index in range(math.ceil((frames - 1) / performer.frames)):
      start = performer.first + index * performer.samples
      sounds = (fitted_audio(x[start:], performer.samples) for x in (speak_audio, listen_audio))
      span = (start / SAMPLE_RATE, (start + performer.samples) / SAMPLE_RATE)
      performance, chunk, finite = performer.step(performance, *sounds, text_between(texts, *span))
      if not finite:  # as in a session: the last frame is held, the stream begins anew
        logging.warning("chunk %d is not finite: its frame is held", index)
        chunk = np.repeat(made[-1][-1:], performer.frames, axis=0)
        performance, _ = performer.begin(picture, slots, opening, seed + index + 1)
      made.append(chunk)
    return np.concatenate(made)[:frames]

  def _filled(self, picture: np.ndarray, references: Sequence[Labelled]) -> list[Labelled]:
    """The references in as many slots as every clip gets."""
    if all(kind != GLOBAL for _, kind, _ in references):
      references = [(picture, GLOBAL, 0), *references]
    if len(references) > self._slots:
      raise ValueError(f"references: found {len(references)}, expected at most {self._slots}")
    empty = (np.zeros_like(picture), _EMPTY, 0)
    return [*references, *[empty] * (self._slots - len(references))]


def stream_folders(config: ConfigDict, others: Sequence[str]) -> dict[str, str]:
  """Folders of weights of the streams in a config, by the name of their system.

  Those are all of `config.online`, in the order in which `config.systems` names them, then by name;
  where there are none and `config.systems` has "online", that of `config.weights`. Raises
  ValueError for the name of one of the `others`.
  """
  named: Mapping[str, str] = config.get("online") or {}
  for name in named:
    if name in others:
      raise ValueError(f"online: {name!r} is the name of another system, found in {list(named)}")
  if not named and ONLINE in config.systems:
    return {ONLINE: config.weights}
  places = {name: place for place, name in enumerate(config.systems)}
  order = sorted(named, key=lambda name: (places.get(name, len(places)), name))
  return {name: named[name] for name in order}
