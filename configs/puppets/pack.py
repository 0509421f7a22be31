"""The weights that ship, from the runs that made them: eight bits a number.

lpm weights pack --config=configs/puppets/pack.py --workdir=lpm_jax/weights/puppets
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; no presets."""
  if arg:
    raise ValueError(f"configs/puppets/pack.py: found :{arg}, expected none")
  c = ConfigDict()
  c.files = ConfigDict()  # NAME.safetensors -> the folder where it lies
  c.files.base = "runs/extension/weights"
  c.files.backbone = "runs/online/3/weights"
  c.files.refiner = "runs/online/4/weights"
  return c
