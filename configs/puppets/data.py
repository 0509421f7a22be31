"""The puppet world as a TFDS dataset: procedural characters with exact ground truth.

lpm data puppets --config=configs/puppets/data.py --workdir=data/puppets
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """Clips per split; `:demo` is the small set that `make demo` renders."""
  demo = arg == "demo"
  c = ConfigDict()
  c.seed = 0
  c.clips = ConfigDict()
  c.clips.train = 32 if demo else 1_200
  c.clips.validation = 4 if demo else 40
  return c
