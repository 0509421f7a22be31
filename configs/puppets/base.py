"""Base LPM on puppets: speak -> listen -> identity -> temporal extension (LPM 1.0's stages).

  lpm train --config=configs/puppets/base.py --workdir=runs/puppets

`:quick` goes through all stages in a quarter of an hour on two cores, `:demo` continues the shipped
weights for a few steps, `:tiny` is a model of a few thousand parameters that runs in seconds.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; `arg` is None, "quick", "demo" or "tiny"."""
  if arg not in (None, "", "quick", "demo", "tiny"):
    raise ValueError(f"configs/puppets/base.py: found :{arg}, expected :quick, :demo or :tiny")
  c = ConfigDict()
  c.task = "base"
  c.export = "base"
  c.seed = 0
  c.steps = 3_100
  c.batch_size = 16
  c.accumulate = 1
  c.max_minutes = 0.0  # 0: no limit
  c.init = ""  # a weights folder to start from; "puppets" is the shipped one
  c.audio = "runs/audio/weights"  # pretrained audio encoders (configs/puppets/audio.py); "": none

  # data
  c.data = ConfigDict()
  c.data.path = "data/puppets_latents/train"
  c.data.validation = "data/puppets_latents/validation"  # "": no validation loss
  c.data.twins = ""  # twins follow each other here; only for stages of twins
  c.data.latent_frames = 19  # the whole clip; the last stage takes less and starts later
  c.data.slots = 6  # references per example

  # model
  c.model = ConfigDict()
  c.model.transformer = dict(width=192, heads=3, layers=6, hidden=512, channels=24)
  c.model.text = dict(width=128, layers=2)
  c.model.audio = dict(width=128)

  # loss
  c.loss = ConfigDict()
  c.loss.shift = 2.5
  c.loss.update(motion=0.5, twins=0.5, own_given=0.0)
  c.loss.update(drop_text=0.1, drop_speak=0.1, drop_listen=0.1)

  # stages: clip kinds by weight, probabilities of references and of a start within the clip. Lips
  # follow sound within a few latents, so the first stages cut short windows: twice the clips a
  # second. They begin with the clip, for its text says what happens from there on. The audio
  # encoders have learned already and follow slowly.
  encoders = ((r"^(speak|listen)/", 0.3),)
  short = dict(latent_frames=10, slots=1, learning_rates=encoders)
  whole = dict(extra_references=0.7, learning_rates=encoders)
  kinds = dict(speak=0.28, listen=0.24, idle=0.24, dialogue=0.24)
  spoken = dict(speak=0.6, idle=0.2, dialogue=0.2)
  c.stages = (
    dict(name="speak", steps=1_200, mixture=spoken, global_reference=0.5, **short),
    dict(name="listen", steps=800, mixture=kinds, global_reference=0.5, **short),
    dict(name="identity", steps=700, mixture=kinds, **whole),
    dict(name="extension", steps=400, mixture=kinds, latent_frames=14, extension=0.5, **whole),
  )

  # optimiser
  c.optimiser = ConfigDict()
  c.optimiser.learning_rate = 1.5e-3
  c.optimiser.final_learning_rate = 1e-5
  c.optimiser.warmup = 200
  c.optimiser.update(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
  c.optimiser.ema = 0.999

  # sharding, checkpoint
  c.sharding = dict(mesh=dict(data=-1), rules=dict(embed="fsdp", mlp="tensor", heads="tensor"))
  c.checkpoint = dict(every=250, keep=3, local=dict(folder="", every=50, keep=2))

  # survival (docs/running.md)
  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  c.guard = dict(policy="stop", spike=0.0, window=64, limit=10)  # NaN, spikes: stop, skip, rewind
  c.watchdog = dict(stall_seconds=900.0, lost_seconds=40.0)
  c.profile = dict(start=10, steps=0, every=0)
  c.goodput_job = ""  # name for Cloud Logging; "": workdir/goodput alone

  # evaluation
  c.evaluation = dict(log_every=20, sample_every=1_000)
  c.evaluation.sample_clips = 4  # videos of validation clips; 0: none
  c.evaluation.update(sample_steps=12, sample_shift=3.0, sample_guidance=2.0, vae="puppets")

  if arg == "quick":
    c.steps = 620
    c.batch_size = 8
    c.stages = tuple({**stage, "steps": stage["steps"] // 5} for stage in c.stages)
    c.optimiser.warmup = 50
    c.optimiser.ema = 0.98
    c.evaluation.sample_every = 0
  if arg == "demo":
    c.init = "puppets"
    c.data.path = "demo/latents/train"
    c.data.validation = "demo/latents/validation"
    c.steps = 12
    c.batch_size = 4
    c.stages = c.stages[-1:]
    c.optimiser.update(learning_rate=2e-5, warmup=2)
    c.checkpoint.every = 4
    c.evaluation.log_every = 2
    c.evaluation.sample_every = 12
    c.evaluation.sample_clips = 0
  if arg == "tiny":
    c.steps, c.batch_size, c.audio = 8, 2, ""
    c.data.latent_frames = 3
    c.data.slots = 2
    c.model.transformer = dict(width=24, heads=2, layers=2, hidden=32)
    c.model.transformer.update(text_width=16, audio_width=16)
    c.model.text = dict(width=16, heads=2, layers=1, length=6)
    c.model.audio = dict(width=16, bands=16, dilations=(1,))
    c.stages = tuple({**stage, "steps": 2, "latent_frames": None} for stage in c.stages)
    c.optimiser.warmup = 1
    c.checkpoint.every = 4
    c.evaluation.log_every = 1
    c.evaluation.sample_every = 8
    c.evaluation.sample_clips = 0
  return c
