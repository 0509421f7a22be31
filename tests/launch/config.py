"""The one thing of a config that a submission looks at. Presets: `:one` fits one v5p-256 only."""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  if arg not in (None, "one"):
    raise ValueError(f"tests/launch/config.py: found :{arg}, expected :one or no preset")
  mesh = dict(data=2 if arg else -1, fsdp=64, tensor=1)
  return ConfigDict(dict(sharding=dict(mesh=mesh)))
