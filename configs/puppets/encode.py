"""VAE latents of the puppet clips, computed once; training reads these.

lpm data encode --config=configs/puppets/encode.py --workdir=data/puppets_latents
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """Splits of the dataset in `data_dir`, encoded with the VAE of the folder `weights`."""
  c = ConfigDict()
  c.data_dir = "data/puppets"
  c.weights = "puppets"  # the shipped weights, or a folder with vae.safetensors
  c.splits = ("train", "validation")
  c.half = False  # latents in bfloat16
  c.frozen = dict(text="", tokenizer="", audio="", length=512)  # the small encoders train along
  c.clips_per_shard = 16 if arg == "demo" else 200
  return c
