"""The puppet world as a TFDS dataset: procedural characters with exact ground truth.

lpm data puppets --config=configs/puppets/data.py --workdir=data/puppets
lpm data puppets --config=configs/puppets/data.py:idle --workdir=data/puppets_idle
lpm data puppets --config=configs/puppets/data.py:twins --workdir=data/puppets_twins
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """Clips per split; `:demo` is the small set that `make demo` renders.

  `:idle` and `:idle_more` have further idle scenes: texts with actions, which are a quarter of the
  whole set, need more examples than anything else. `:twins` are pairs of clips that differ in the
  hidden attributes alone (`data_pipelines/puppets/twins.py`): only references tell them apart.
  """
  presets = ("demo", "idle", "idle_more", "twins")
  if arg and arg not in presets:
    raise ValueError(f"configs/puppets/data.py: found :{arg}, expected one of {presets}")
  demo = arg == "demo"
  c = ConfigDict()
  c.seed = 0
  c.clips = ConfigDict()
  c.clips.train = 32 if demo else 1_200
  c.clips.validation = 4 if demo else 40
  c.kind = ""  # of scene, one for all; "": drawn; "twins"
  if arg in ("idle", "idle_more"):
    c.seed = 1 if arg == "idle" else 2
    c.clips = dict(train=800 if arg == "idle" else 1_600)
    c.kind = "idle"
  if arg == "twins":
    c.clips = dict(train=320)
    c.kind = "twins"
  return c
