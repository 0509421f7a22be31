"""Files a person would bring: picture, references, two audio tracks, text; held-out puppets.

python -m data_pipelines.puppets.showcase --workdir=demo/inputs
"""

import pathlib
import wave

import numpy as np
from absl import app, flags
from PIL import Image

from data_pipelines.clip import EXPRESSIONS, REFERENCE_KINDS, SAMPLE_RATE, VIEWS, Clip
from data_pipelines.puppets.builder import puppet_clip
from data_pipelines.puppets.character import STYLES

_WORKDIR = flags.DEFINE_string("workdir", "demo/inputs", "Folder that is written.")
_CHARACTERS = flags.DEFINE_integer("characters", 2, "How many, each of another style.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the dialogue.")

_LABELS = (("",), VIEWS, EXPRESSIONS)
# What a person would bring: few pictures that between them show what the main one hides.
_BROUGHT = {("left", 1), ("right", 1), ("happiness", 2), ("surprise", 2), ("disgust", 2), ("", 0)}


def write_inputs(clip: Clip, folder: pathlib.Path):
  """Writes picture.png, references/KIND-LABEL.png, character.wav, partner.wav, text.txt."""
  (folder / "references").mkdir(parents=True, exist_ok=True)
  Image.fromarray(clip.video[0]).save(folder / "picture.png")
  for picture, kind, label in zip(
    clip.references, clip.reference_kind, clip.reference_label, strict=True
  ):
    label = _LABELS[kind][label]
    if (label, int(kind)) in _BROUGHT:
      name = f"{REFERENCE_KINDS[kind]}-{label}".replace(" ", "_").rstrip("-")
      Image.fromarray(picture).save(folder / "references" / f"{name}.png")
  _write_wav(folder / "character.wav", clip.speak_audio)
  _write_wav(folder / "partner.wav", clip.listen_audio)
  (folder / "text.txt").write_text(clip.text + "\n")


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
      write_inputs(clip, pathlib.Path(_WORKDIR.value) / f"character{len(styles)}")


if __name__ == "__main__":
  app.run(main)
