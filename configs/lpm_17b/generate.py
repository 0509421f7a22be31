"""A video from a picture, references, audio and text with the 17B model: offline, any length.

  lpm generate --config=configs/lpm_17b/generate.py --config.weights=FOLDER --workdir=video \
    --config.picture=me.png --config.speak_audio=reply.mp3 --config.text="0:calm;4.5:smiles"

`weights` holds base.safetensors of a training run and the import of Wan2.1's autoencoder.
"""

from ml_collections import ConfigDict

from configs.puppets import generate


def get_config(arg: str | None = None) -> ConfigDict:
  """480p; `:720p` for weights trained at that size."""
  if arg not in (None, "", "720p"):
    raise ValueError(f"configs/lpm_17b/generate.py: found :{arg}, expected :720p")
  c = generate.get_config()
  c.weights = "weights/lpm"

  # size in pixels, height and width, and timestep shift: Wan2.1's (its 14B image-to-video model)
  with c.unlocked():
    del c.size
    c.size = (720, 1280) if arg else (480, 832)
  c.generation.shift = 5.0 if arg else 3.0
  c.generation.steps = 40
  c.generation.window = 31  # latents, as in training
  c.generation.references = 13
  c.scale = 1

  # frozen encoders, as in configs/lpm_17b/encode.py
  c.frozen = dict(text="weights/wan", tokenizer="weights/wan/tokenizer.json", audio="weights/wan")
  c.frozen.length = 512
  return c
