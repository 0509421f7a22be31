"""Files a person would bring: picture, references, two audio tracks, text; held-out puppets.

python -m data_pipelines.puppets.showcase --workdir=demo/inputs
python -m data_pipelines.puppets.showcase --workdir=runs/dialogue --characters=1 --scenes=30

Several scenes follow one another, with voices and sentences of their own; truth.npz says what the
character should do in them, frame by frame (`lpm evaluate --config=configs/eval/long_run.py`).
"""

import json
import pathlib
import wave
from collections.abc import Sequence

import numpy as np
from absl import app, flags
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
from data_pipelines.puppets.builder import puppet_clip
from data_pipelines.puppets.character import STYLES

_WORKDIR = flags.DEFINE_string("workdir", "demo/inputs", "Folder that is written.")
_CHARACTERS = flags.DEFINE_integer("characters", 2, "How many, each of another style.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the dialogue.")

_SCENES = flags.DEFINE_integer("scenes", 1, "Dialogues of that length, one after the other.")

_LABELS = (("",), VIEWS, EXPRESSIONS)
# What a person would bring: few pictures that between them show what the main one hides.
_FURTHER = 1_000  # index of the first scene that follows
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


def main(argv: list[str]):
  """Searches held-out dialogues until every character has another style."""
  frames = 4 * round(_SECONDS.value * 6) + 1
  styles, index = set(), 0
  while len(styles) < min(_CHARACTERS.value, len(STYLES)):
    clip = puppet_clip(index, "heldout", kind="dialogue", frames=frames, all_references=True)
    index += 1
    if clip.style not in styles and len(set(clip.state)) == 3:
      styles.add(clip.style)
      others = range(_FURTHER, _FURTHER + _SCENES.value - 1)
      more = [puppet_clip(i, "heldout", kind="dialogue", frames=frames) for i in others]
      write_inputs([clip, *more], pathlib.Path(_WORKDIR.value) / f"character{len(styles)}")


if __name__ == "__main__":
  app.run(main)
