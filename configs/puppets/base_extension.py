"""Base, after base_references.py:again, learns to go on from what it has made itself.

  lpm train --config=configs/puppets/base_extension.py --workdir=runs/extension

Twins a while longer, whole clips, then windows of which half start within a clip and are given the
model's own latents. A step takes 1 s of two cores.
"""

from ml_collections import ConfigDict

from configs.puppets import base_references


def get_config(arg: str | None = None) -> ConfigDict:
  """Starts from the weights in `config.init`, which base_references.py:again leaves; no presets."""
  if arg:
    raise ValueError(f"configs/puppets/base_extension.py: found :{arg}, expected none")
  c = base_references.get_config("again")
  c.init = "runs/references_again/weights"
  c.loss.own_given = 0.7

  # stages: twins and whole clips as before; the last one as of base.py
  twins, whole = c.stages
  extension = dict(latent_frames=14, extension=0.5)
  c.stages = (
    {**twins, "steps": 300},
    {**whole, "steps": 500},
    {**whole, "name": "extension", "steps": 900, **extension},
  )
  c.steps = sum(stage["steps"] for stage in c.stages)
  c.optimiser.update(learning_rate=6e-4, final_learning_rate=1e-5)
  return c
