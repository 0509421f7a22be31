"""The audio encoders of the puppet model, before Base: from two tracks to the pose they cause.

What a pretrained wav2vec2 is to the 17B model. Takes the clips that Base trains on.
  lpm train --config=configs/puppets/audio.py --workdir=runs/audio
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; `arg` is None or "tiny"."""
  if arg not in (None, "", "tiny"):
    raise ValueError(f"configs/puppets/audio.py: found :{arg}, expected :tiny")
  c = ConfigDict()
  c.task = "audio"
  c.export = "audio"
  c.seed = 0
  c.steps = 1_500
  c.batch_size = 16

  # data
  c.data = ConfigDict()
  c.data.path = "data/puppets_latents/train"
  c.data.validation = "data/puppets_latents/validation"  # "": no validation

  # model
  c.model = ConfigDict()
  c.model.width = 128

  # optimiser
  c.optimiser = ConfigDict()
  c.optimiser.learning_rate = 2e-3
  c.optimiser.final_learning_rate = 1e-5
  c.optimiser.warmup = 100
  c.optimiser.update(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.05, clip_norm=1.0)
  c.optimiser.ema = 0.99

  # sharding, checkpoint, evaluation
  c.sharding = dict(mesh=dict(data=-1), rules=dict(batch="data"))
  c.checkpoint = dict(every=500, keep=1, local=dict(folder="", every=50, keep=2))
  c.evaluation = dict(log_every=50, sample_every=500)

  # survival (docs/running.md)
  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  c.guard = dict(policy="stop", spike=0.0, window=64, limit=10)  # NaN, spikes: stop, skip, rewind
  c.watchdog = dict(stall_seconds=900.0, lost_seconds=40.0)
  c.profile = dict(start=10, steps=0, every=0)
  c.goodput_job = ""  # name for Cloud Logging; "": workdir/goodput alone

  if arg == "tiny":
    c.steps = 2
    c.batch_size = 2
    c.model.width = 16
    c.model.update(bands=16, dilations=(1,))
    c.checkpoint.every = 2
    c.evaluation.update(log_every=1, sample_every=2)
  return c
