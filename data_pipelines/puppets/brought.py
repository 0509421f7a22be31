"""Clips as the files that a person would bring for a video."""

import json
import pathlib
import wave
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_pipelines.clip import (
  EXPRESSIONS,
  REFERENCE_KINDS,
  SAMPLE_RATE,
  VIEWS,
  Clip,
  audio_samples,
  fitted_audio,
)

_LABELS = (("",), VIEWS, EXPRESSIONS)
# What a person would bring: few pictures that between them show what the main one hides.
_BROUGHT = {("left", 1), ("right", 1), ("happiness", 2), ("surprise", 2), ("disgust", 2), ("", 0)}


def write_inputs(clips: Sequence[Clip], folder: pathlib.Path):
  """Writes picture.png, references/KIND-LABEL.png, character.wav, partner.wav, text.txt, truth.npz.

  The first clip plays; of the others sound, text and truth follow. Each but the last frame of a
  clip is played.
  """
  clip, frames = clips[0], len(clips[0].video) - 1
  (folder / "references").mkdir(parents=True, exist_ok=True)
  Image.fromarray(clip.video[0]).save(folder / "picture.png")
  for picture, kind, label in zip(
    clip.references, clip.reference_kind, clip.reference_label, strict=True
  ):
    label = _LABELS[kind][label]
    if (label, int(kind)) in _BROUGHT:
      name = f"{REFERENCE_KINDS[kind]}-{label}".replace(" ", "_").rstrip("-")
      Image.fromarray(picture).save(folder / "references" / f"{name}.png")
  samples = audio_samples(frames)
  for name, track in (("character", "speak_audio"), ("partner", "listen_audio")):
    parts = [fitted_audio(getattr(one, track), samples) for one in clips]
    _write_wav(folder / f"{name}.wav", np.concatenate(parts))
  length = frames / clip.fps
  texts = [f"{i * length:g}:{one.text}" for i, one in enumerate(clips)]
  (folder / "text.txt").write_text((";".join(texts) if len(clips) > 1 else clip.text) + "\n")
  np.savez_compressed(
    folder / "truth.npz",
    pose=np.concatenate([one.truth["pose"][:frames] for one in clips]),
    state=np.concatenate([one.state[:frames] for one in clips]),
    frames=frames,
    fps=clip.fps,
    told=json.dumps(
      {
        "attributes": {name: int(value) for name, value in clip.truth["attributes"].items()},
        "events": [one.truth["events"] for one in clips],
      }
    ),
  )


def _write_wav(path: pathlib.Path, audio: np.ndarray):
  with wave.open(str(path), "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(SAMPLE_RATE)
    file.writeframes((audio * 32767).astype("<i2").tobytes())
