"""1,350 steps on the way to the shipped Base: older weights learn the present latents (model card).

lpm train --config=configs/puppets/base_continued.py --config.init=FOLDER --workdir=runs/continued
"""

from ml_collections import ConfigDict

from configs.puppets import base


def get_config(arg: str | None = None) -> ConfigDict:
  """No presets; `config.init` is the folder of the weights that go on."""
  if arg:
    raise ValueError(f"configs/puppets/base_continued.py: found :{arg}, expected none")
  c = base.get_config()
  c.steps = 1_350
  c.data.slots = 4

  # stages
  kinds = dict(speak=0.34, listen=0.12, idle=0.3, dialogue=0.24)
  common = dict(mixture=kinds, learning_rates=((r"^(speak|listen)/", 0.3),))
  middle = dict(latent_frames=14, slots=6, extra_references=0.7, extension=0.5)
  c.stages = (
    dict(name="whole", steps=1_100, extra_references=0.8, **common),
    dict(name="extension", steps=250, **middle, **common),
  )

  # optimiser
  c.optimiser.learning_rate = 6e-4
  c.optimiser.warmup = 20
  c.optimiser.ema = 0.997

  # evaluation
  c.evaluation.sample_every = 400
  c.evaluation.sample_guidance = 1.5
  return c
