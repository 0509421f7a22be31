"""The causal video autoencoder on puppets, with the structure of Wan2.1's.

  lpm train --config=configs/puppets/vae.py --workdir=runs/vae

`:tiny` is a model of a few thousand parameters that runs through in seconds.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; `arg` is None or "tiny"."""
  if arg not in (None, "", "tiny"):
    raise ValueError(f"configs/puppets/vae.py: found :{arg}, expected :tiny")
  c = ConfigDict()
  c.task = "autoencoder"
  c.export = "vae"
  c.seed = 0
  c.steps = 1
  c.batch_size = 4
  c.accumulate = 1
  c.max_minutes = 0.0  # 0: no limit
  c.init = ""  # a weights folder to start from; "puppets" is the shipped one
  c.trainable = "decoder"  # latents stay the principal components; "all": the encoder learns too

  # data
  c.data = ConfigDict()
  c.data.path = "data/puppets"  # the workdir of `lpm data puppets`
  c.data.validation = "validation"  # split of the samples; "": none
  c.data.statistics_clips = 128
  c.data.moving = 3.0  # weight of blocks that move in the components
  c.data.change = 1.5  # weight of change within a block

  # stages, per example: frames of a clip (1 + 4k) and references coded as clips of one frame. The
  # components are kept as they are: training the network has not paid yet (docs/decisions.md). To
  # train it: single pictures first, which are cheap, then clips of 13 frames or more, so that the
  # oldest tap of the decoder in time is reached.
  c.stages = (dict(name="components", steps=1, frames=1, pictures=3, rate=0.0),)

  # model
  c.model = ConfigDict()
  c.model.base = 8
  c.model.multipliers = (1, 2, 4, 4)
  c.model.blocks = 1
  c.model.latent_channels = 24
  c.model.shortcut = True  # starts as the principal components of the data

  # loss: weights beside the mean absolute error
  c.loss = ConfigDict()
  c.loss.edges = 1.0
  c.loss.motion = 0.5
  c.loss.moving = 4.0
  c.loss.kl = 1e-4
  c.loss.noise = 0.0

  # optimiser
  c.optimiser = ConfigDict()
  c.optimiser.learning_rate = 1e-3
  c.optimiser.final_learning_rate = 1e-5
  c.optimiser.warmup = 0
  c.optimiser.b1 = 0.9
  c.optimiser.b2 = 0.99
  c.optimiser.eps = 1e-8
  c.optimiser.weight_decay = 0.0
  c.optimiser.clip_norm = 1.0
  c.optimiser.ema = 0.995

  # sharding
  c.sharding = ConfigDict()
  c.sharding.mesh = dict(data=-1)
  c.sharding.rules = dict(batch="data")

  # checkpoint
  c.checkpoint = ConfigDict()
  c.checkpoint.every = 250
  c.checkpoint.keep = 2
  c.checkpoint.local = dict(folder="", every=50, keep=2)

  # survival (docs/running.md)
  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  c.guard = dict(policy="stop", spike=0.0, window=64, limit=10)  # NaN, spikes: stop, skip, rewind
  c.watchdog = dict(stall_seconds=900.0, lost_seconds=40.0)
  c.profile = dict(start=10, steps=0, every=0)
  c.goodput_job = ""  # name for Cloud Logging; "": workdir/goodput alone

  # evaluation
  c.evaluation = ConfigDict()
  c.evaluation.log_every = 20
  c.evaluation.sample_every = 250

  if arg == "tiny":
    c.steps = 4
    c.batch_size = 2
    c.stages = (
      dict(name="pictures", steps=2, frames=1, pictures=2, rate=1.0),
      dict(name="clips", steps=2, frames=5, pictures=1, rate=1.0),
    )
    c.data.statistics_clips = 2
    c.model.base = 4
    c.model.multipliers = (1, 1, 2, 2)
    c.optimiser.warmup = 1
    c.checkpoint.every = 2
    c.evaluation.log_every = 1
    c.evaluation.sample_every = 4
  return c
