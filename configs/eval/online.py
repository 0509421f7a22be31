"""Online LPM on puppets beside Base: what each stage of distillation keeps, the same clips for all.

lpm evaluate --config=configs/eval/online.py:ode=runs/ode/weights,dmd=runs/dmd/weights \\
  --config.weights=runs/weights --workdir=runs/online_evaluation

Every NAME=FOLDER is a column, in this order. A folder has backbone.safetensors, refiner.safetensors
where there is one, and vae.safetensors unless it is that of `weights`; with base.safetensors alone
it streams undistilled. Without any, the stream of `weights` is measured. `quick` is that of
puppets.py.
"""

from ml_collections import ConfigDict

from configs.eval import puppets


def get_config(arg: str | None = None) -> ConfigDict:
  """`arg`: "quick" and NAME=FOLDER, separated by commas."""
  parts = [part for part in (arg or "").split(",") if part]
  folders = dict(part.split("=", 1) for part in parts if "=" in part)
  presets = [part for part in parts if "=" not in part]
  c = puppets.get_config(",".join(presets))
  c.title = "Online LPM on puppets"
  c.command = f"lpm evaluate --config=configs/eval/online.py{':' + arg if arg else ''}"
  c.systems = ("render", "vae", "model", "still", *(folders or ("online",)))  # in this order
  c.online = ConfigDict(folders)
  return c
