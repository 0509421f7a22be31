r"""A video from a picture, references, audio and text: offline, any length.

  lpm generate --config=configs/puppets/generate.py --config.inputs=demo/inputs/character1 \
    --workdir=demo/character1

`inputs` is a folder with picture.*, references/KIND[-LABEL].*, character.* and partner.* (audio),
text.txt; each can be named on its own instead, for example
  --config.picture=me.png --config.speak_audio=reply.mp3 --config.text="0:calm;4.5:smiles"
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """No presets."""
  if arg:
    raise ValueError(f"configs/puppets/generate.py: found :{arg}, expected none")
  c = ConfigDict()
  c.seed = 0

  # what a person brings
  c.inputs = ""
  c.picture = ""
  c.references = ""  # path:kind[:label], separated by commas
  c.speak_audio = ""
  c.listen_audio = ""
  c.dialogue_audio = ""  # both tracks in one file: stereo, or mixed with a diarisation
  c.diarisation = ""
  c.character = ""
  c.text = ""
  c.seconds = 0.0  # 0: as long as the longer track

  # model
  c.weights = (
    "puppets"  # the shipped weights, or a folder with base.safetensors and vae.safetensors
  )
  c.size = 64
  c.generation = ConfigDict()  # fields of lpm_jax.generate.GenerateSettings
  c.generation.steps = 12
  c.generation.shift = 2.5  # as in training
  c.generation.temperature = 0.7
  c.generation.window = 19
  c.generation.references = 6

  # output
  c.output = "dialogue.mp4"
  c.scale = 4
  return c
