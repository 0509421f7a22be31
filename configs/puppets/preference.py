r"""Preference tuning of the shipped Base on pairs of its own videos (docs/preference.md).

  lpm prefer --config=configs/puppets/preference_pairs.py:candidates \
    --workdir=data/puppets_candidates
  lpm prefer --config=configs/puppets/preference_pairs.py:pairs --workdir=data/puppets_pairs
  lpm train --config=configs/puppets/preference.py --workdir=runs/preference

`:tiny` is a model of a few thousand parameters. Never run to its end: beta is that of Diffusion-DPO
(arXiv 2311.12908; 2,000 to 5,000 for errors that are means), the rest are guesses.
"""

from ml_collections import ConfigDict

from configs.puppets import base


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; `arg` is None or "tiny"."""
  if arg not in (None, "", "tiny"):
    raise ValueError(f"configs/puppets/preference.py: found :{arg}, expected :tiny")
  tiny = arg == "tiny"
  c = base.get_config(arg)
  c.task = "preference"
  c.steps = 4 if tiny else 400
  c.batch_size = 2 if tiny else 8  # pairs
  c.reference = "puppets"  # the weights that are tuned, and what they are compared with
  c.audio = ""  # encoders come with the reference

  # data: pairs
  c.data.path = "data/puppets_pairs"
  c.data.validation = ""  # a folder of pairs of other clips

  # loss
  c.loss.beta = 2_000.0
  c.loss.regulariser = 1.0  # weight of flow matching on the winner
  c.loss.update(motion=0.5, drop_text=0.0, drop_speak=0.0, drop_listen=0.0)

  # stage: what is heard and read stays as it is
  kinds = dict(speak=0.25, listen=0.25, idle=0.25, dialogue=0.25)
  still = ((r"/(text|speak|listen)/", 0.0),)
  c.stages = (dict(name="preference", steps=c.steps, mixture=kinds, learning_rates=still),)

  # optimiser
  c.optimiser.update(learning_rate=2e-5, final_learning_rate=2e-5, warmup=1 if tiny else 50)
  c.optimiser.update(weight_decay=0.0, ema=0.99)  # decay would draw away from the reference

  # checkpoint, evaluation
  c.checkpoint.every = 2 if tiny else 100
  c.evaluation.log_every = 1 if tiny else 10
  c.evaluation.sample_every = 0 if tiny else 200
  return c
