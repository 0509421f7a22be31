"""The probe: reads pose, hidden attributes and style back from single puppet frames.

Its own error on held-out renders is printed in every evaluation report.
  lpm train --config=configs/puppets/probe.py --workdir=runs/probe
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """No presets: rendering its frames and training it take minutes on two cores."""
  if arg:
    raise ValueError(f"unknown preset {arg!r}, expected none")
  c = ConfigDict()
  c.task = "probe"
  c.export = "probe"
  c.seed = 0
  c.steps = 3000
  c.batch_size = 64
  c.init = ""  # a weights folder to start from; "puppets" is the shipped one
  # data: single frames of random poses, rendered once into `folder`
  c.data = ConfigDict()
  c.data.folder = "data/probe_faces"
  c.data.characters = 4000
  # model
  c.model = ConfigDict()
  c.model.widths = (64, 96, 128)
  c.model.hidden = 128
  # optimiser
  c.optimiser = ConfigDict()
  c.optimiser.learning_rate = 2e-3
  c.optimiser.final_learning_rate = 1e-5
  c.optimiser.warmup = 100
  c.optimiser.weight_decay = 0.02
  c.optimiser.clip_norm = 1.0
  c.optimiser.b1, c.optimiser.b2, c.optimiser.eps = 0.9, 0.99, 1e-8
  c.optimiser.ema = 0.995
  # sharding
  c.sharding = ConfigDict()
  c.sharding.mesh = ConfigDict({"data": -1})
  c.sharding.rules = ConfigDict({"batch": "data"})
  # checkpoint
  c.checkpoint = ConfigDict()
  c.checkpoint.every = 1000
  c.checkpoint.keep = 1
  c.checkpoint.local = dict(folder="", every=50, keep=2)
  # survival (docs/running.md)
  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  c.guard = dict(policy="stop", spike=0.0, window=64, limit=10)  # NaN, spikes: stop, skip, rewind
  c.watchdog = dict(stall_seconds=900.0, lost_seconds=40.0)
  c.profile = dict(start=10, steps=0, every=0)
  c.goodput_job = ""  # name for Cloud Logging; "": workdir/goodput alone
  # evaluation
  c.evaluation = ConfigDict()
  c.evaluation.log_every = 50
  c.evaluation.sample_every = 0
  return c
