"""Preference tuning of Base, 17.435B parameters, 832x480 (LPM 1.0, section 3.9; numbers are ours).

Pairs are those of configs/lpm_17b/preference_pairs.py, which people judge. Never run.
  lpm train --config=configs/lpm_17b/preference.py:v5p_512 --workdir=gs://BUCKET/runs/preference

beta 5,000, a rate of 1e-8 times the pairs of a step and 10 % of warm-up are those of the public
launcher of Diffusion-DPO for SDXL (arXiv 2311.12908; 2,048 pairs there, 256 here); beta is the same
at every timestep, as in Flow-DPO (arXiv 2501.13918). Nobody published a regulariser's weight.
"""

from ml_collections import ConfigDict

from configs.lpm_17b import base_480p


def get_config(arg: str | None = None) -> ConfigDict:
  """Presets are the pods of configs/lpm_17b/pods.py; a step has two videos of each pair."""
  c = base_480p.get_config(arg)
  c.task = "preference"
  c.steps = 2_000
  c.reference = "weights/lpm"  # the weights that are tuned, and what they are compared with

  # data: pairs
  c.data.path = "data/lpm_pairs"
  c.data.validation = ""

  # loss
  c.loss.beta = 5_000.0
  c.loss.regulariser = 1.0
  c.loss.update(drop_text=0.0, drop_speak=0.0, drop_listen=0.0)

  # stage: listening and speaking alike; what hears and reads stays as it is
  kinds = dict(speak=0.3, listen=0.3, idle=0.1, dialogue=0.3)
  still = ((r"/(text|speak|listen)/", 0.0),)
  c.stages = (dict(name="preference", steps=c.steps, mixture=kinds, learning_rates=still),)

  # optimiser
  rate = 1e-8 * c.batch_size
  c.optimiser.update(learning_rate=rate, final_learning_rate=rate, warmup=200)
  c.optimiser.update(weight_decay=0.0, ema=0.999)
  return c
