"""Clips -> latents of Wan2.1's autoencoder and features of umT5-xxl and wav2vec2-large, once.

  lpm data encode --config=configs/lpm_17b/encode.py --config.data_dir=CLIPS --workdir=LATENTS

CLIPS/SPLIT/*.array_record hold clips; every process writes its share of the shards.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """No presets. The folders are those of `lpm weights import` (configs/lpm_17b/weights.py)."""
  if arg:
    raise ValueError(f"configs/lpm_17b/encode.py: found :{arg}, expected no preset")
  c = ConfigDict()
  c.data_dir = "data/lpm_clips"
  c.splits = ("train", "validation")
  c.clips_per_shard = 200
  c.weights = "weights/wan"
  c.half = True  # latents in bfloat16
  c.frozen = ConfigDict()
  c.frozen.text = "weights/wan"
  c.frozen.tokenizer = "weights/wan/tokenizer.json"  # of google/umt5-xxl
  c.frozen.audio = "weights/wan"
  c.frozen.length = 512
  return c
