"""The shipped Base learns to use its references: twins, then clips of all kinds again.

lpm train --config=configs/puppets/base_references.py --workdir=runs/references

Folders of latents: configs/puppets/data.py and :twins, each encoded (configs/puppets/encode.py).
A step of twins takes 1 s of one core. Never run to its end, only 150 steps of 4 pairs: not shipped.
"""

from ml_collections import ConfigDict

from configs.puppets import base


def get_config(arg: str | None = None) -> ConfigDict:
  """No presets; starts from the weights in the folder `config.init`."""
  if arg:
    raise ValueError(f"configs/puppets/base_references.py: found :{arg}, expected none")
  c = base.get_config()
  c.init = "puppets"
  c.steps = 600
  c.batch_size = 8  # 8 pairs of twins are 16 windows
  c.data.twins = "data/puppets_twins_latents/train"
  with c.ignore_type():
    c.data.path = ("data/puppets_latents/train", c.data.twins)
  c.data.slots = 6
  c.loss.shift = 5.0

  # stages. Twins are silent: what hears stays as it is while they are shown.
  deaf = ((r"^(speak|listen)/", 0.0), (r"/audio_", 0.0))
  kinds = dict(speak=0.34, listen=0.14, idle=0.34, dialogue=0.18)
  common = dict(mixture=kinds, extra_references=1.0)
  twins = dict(twins=True, filled=1.0, latent_frames=4, learning_rates=deaf)
  c.stages = (
    dict(name="twins", steps=450, **twins, **common),
    dict(name="whole", steps=150, learning_rates=((r"^(speak|listen)/", 0.3),), **common),
  )

  # optimiser
  c.optimiser.learning_rate = 1e-3
  c.optimiser.warmup = 30
  c.optimiser.ema = 0.98

  # checkpoint, evaluation
  c.checkpoint.every = 50
  c.evaluation.log_every = 5
  c.evaluation.sample_every = 0
  return c
