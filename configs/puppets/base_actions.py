"""The last steps of the shipped Base: many idle scenes, whose texts are followed (model card).

lpm train --config=configs/puppets/base_actions.py --config.init=FOLDER --workdir=runs/actions1
lpm train --config=configs/puppets/base_actions.py:more --config.init=... --workdir=runs/actions2

Folders of latents: configs/puppets/data.py, :idle and :idle_more, each encoded.
"""

from ml_collections import ConfigDict

from configs.puppets import base


def get_config(arg: str | None = None) -> ConfigDict:
  """1,900 steps; `:more` are the 2,250 after them, with the second set of idle scenes."""
  if arg not in (None, "", "more"):
    raise ValueError(f"configs/puppets/base_actions.py: found :{arg}, expected :more")
  c = base.get_config()
  actions, whole = (1_400, 850) if arg else (1_000, 900)
  c.steps = actions + whole
  sets = ("puppets", "puppets_idle", "puppets_idle_more") if arg else ("puppets", "puppets_idle")
  with c.ignore_type():
    c.data.path = tuple(f"data/{name}_latents/train" for name in sets)
  c.data.slots = 4
  c.loss.shift = 8.0  # actions are decided while there is much noise

  # stages
  few = dict(speak=0.24, listen=0.06, idle=0.58, dialogue=0.12)
  all_kinds = dict(speak=0.34, listen=0.08, idle=0.44, dialogue=0.14)
  slower = dict(learning_rates=((r"^(speak|listen)/", 0.3),))
  short = dict(latent_frames=10, slots=1, global_reference=0.5)
  c.stages = (
    dict(name="actions", steps=actions, mixture=few, **short, **slower),
    dict(name="whole", steps=whole, mixture=all_kinds, extra_references=0.8, **slower),
  )

  # optimiser
  c.optimiser.learning_rate = 1e-3
  c.optimiser.warmup = 30
  c.optimiser.ema = 0.99
  return c
