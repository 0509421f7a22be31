"""Files a person would bring: picture, references, two audio tracks, text; held-out puppets.

python -m data_pipelines.puppets.showcase --workdir=demo/inputs
python -m data_pipelines.puppets.showcase --workdir=runs/dialogue --characters=1 --scenes=30

Several scenes follow one another, with voices and sentences of their own; truth.npz says what the
character should do in them, frame by frame (`lpm evaluate --config=configs/eval/long_run.py`).
"""

import pathlib

from absl import app, flags

from data_pipelines.puppets.brought import write_inputs
from data_pipelines.puppets.builder import puppet_clip
from data_pipelines.puppets.character import STYLES

_WORKDIR = flags.DEFINE_string("workdir", "demo/inputs", "Folder that is written.")
_CHARACTERS = flags.DEFINE_integer("characters", 2, "How many, each of another style.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the dialogue.")

_SCENES = flags.DEFINE_integer("scenes", 1, "Dialogues of that length, one after the other.")

_FURTHER = 1_000  # index of the first scene that follows


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
