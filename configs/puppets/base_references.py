r"""Base, after base_actions.py, learns to use its references: twins, then clips of all kinds again.

  lpm train --config=configs/puppets/base_references.py --config.init=FOLDER \
    --workdir=runs/references
  lpm train --config=configs/puppets/base_references.py:again --workdir=runs/references_again

Folders of latents: configs/puppets/data.py and :twins, each encoded (configs/puppets/encode.py).
A step of either stage takes 1 s of two cores. `:again` starts from what the first run left: twins
longer, and many more clips of all kinds, because lips suffer while twins are silent.
"""

from ml_collections import ConfigDict

from configs.puppets import base


def get_config(arg: str | None = None) -> ConfigDict:
  """Starts from the weights in the folder `config.init`; `arg` is None or "again"."""
  if arg not in (None, "", "again"):
    raise ValueError(f"configs/puppets/base_references.py: found :{arg}, expected :again")
  c = base.get_config()
  c.steps = 1_100
  c.batch_size = 8  # 8 pairs of twins are 16 windows
  c.data.twins = "data/puppets_twins_latents/train"
  with c.ignore_type():
    c.data.path = ("data/puppets_latents/train", c.data.twins)
  c.data.slots = 6
  c.loss.update(shift=5.0, twins=1.0)

  # stages. Twins are silent: what hears stays as it is while they are shown.
  deaf = ((r"^(speak|listen)/", 0.0), (r"/audio_", 0.0))
  kinds = dict(speak=0.34, listen=0.14, idle=0.34, dialogue=0.18)
  common = dict(mixture=kinds, extra_references=1.0)
  twins = dict(twins=True, filled=1.0, latent_frames=4, learning_rates=deaf)
  c.stages = (
    dict(name="twins", steps=900, **twins, **common),
    dict(name="whole", steps=200, learning_rates=((r"^(speak|listen)/", 0.3),), **common),
  )

  # optimiser
  c.optimiser.learning_rate = 1e-3
  c.optimiser.final_learning_rate = 2e-4  # clips of all kinds come last
  c.optimiser.warmup = 30
  c.optimiser.ema = 0.99

  # checkpoint, evaluation
  c.checkpoint.every = 50
  c.evaluation.log_every = 5
  c.evaluation.sample_every = 0

  if arg == "again":
    c.init = "runs/references/weights"
    c.steps = 1_400
    c.loss.shift = 3.0
    c.stages = tuple({**stage, "steps": n} for stage, n in zip(c.stages, (400, 1_000), strict=True))
    c.optimiser.update(learning_rate=7e-4, final_learning_rate=3e-5)
    c.optimiser.ema = 0.995
  return c
