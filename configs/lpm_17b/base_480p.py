"""Base LPM, 17.435B parameters, 832x480 at 24 fps (LPM 1.0; learning rates and schedule are ours).

For the task of configs/puppets/base.py. Expected result: none yet, nobody has trained it.
  lpm train --config=configs/lpm_17b/base_480p.py:v5p_512 --workdir=gs://BUCKET/runs/base_480p
"""

from ml_collections import ConfigDict

from configs.lpm_17b import pods


def get_config(arg: str | None = None) -> ConfigDict:
  """Presets are the pods of configs/lpm_17b/pods.py; by default v5p_512."""
  c = ConfigDict()
  c.task = "base"
  c.export = "base"
  c.seed = 0
  c.steps = 60_000
  c.batch_size = 256
  c.accumulate = 1  # of the preset
  c.max_minutes = 0.0
  c.init = ""  # the folder with the imported Wan2.1-14B trunk
  c.audio = ""
  c.frozen = dict(text="", tokenizer="", audio="", length=512)  # features are stored with the clips

  # data
  c.data = ConfigDict()
  c.data.path = "data/lpm_latents/train"
  c.data.validation = "data/lpm_latents/validation"
  c.data.height, c.data.width = 480, 832  # pixels; the data decides, `lpm plan` reads this
  c.data.latent_frames = 32  # 125 video frames, 5.2 s of the published 3-8 s
  c.data.slots = 8  # of 1 global, up to 4 body views, up to 8 expressions

  # model: Wan2.1-14B, with audio K, V and O of 5120 x 5120 in all 40 blocks
  c.model = ConfigDict()
  c.model.transformer = dict(
    width=5120,
    heads=40,
    layers=40,
    hidden=13824,
    text_width=4096,
    audio_width=5120,
    remat="attention",
    dtype="bfloat16",
    attention="splash",
  )
  c.model.text = dict(length=512)
  c.model.frozen_text = dict()  # umT5-xxl
  c.model.frozen_audio = dict(layer_norm=True, width=1024, heads=16, hidden=4096, layers=24)

  # loss
  c.loss = ConfigDict()
  c.loss.shift = 3.0  # Wan2.1 at 480p
  c.loss.update(motion=0.0, own_given=0.0)
  c.loss.update(drop_text=0.1, drop_speak=0.1, drop_listen=0.1)

  # stages: the trunk is trained already, so what is new learns first and the rest follows slowly
  trunk_slow = (("cross_attention/audio|^speak/|^listen/", 1.0), ("", 0.1))
  balanced = dict(speak=0.35, listen=0.35, idle=0.1, dialogue=0.2)
  c.stages = (
    dict(
      name="speak",
      steps=15_000,
      mixture=dict(speak=0.8, idle=0.2),
      learning_rates=trunk_slow,
    ),
    dict(name="listen", steps=15_000, mixture=balanced, learning_rates=trunk_slow),
    dict(name="identity", steps=20_000, mixture=balanced, extra_references=0.3),
    dict(
      name="temporal extension",
      steps=10_000,
      mixture=balanced,
      extra_references=0.3,
      latent_frames=26,  # so that a window can start 5 latents into the shortest clip
      extension=0.3,
    ),
  )

  # optimiser
  c.optimiser = ConfigDict()
  c.optimiser.learning_rate = 5e-5
  c.optimiser.final_learning_rate = 1e-6
  c.optimiser.warmup = 1_000
  c.optimiser.update(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
  c.optimiser.ema = 0.9999

  # sharding: parameters, moments and average over fsdp, and over what shares a clip
  c.sharding = ConfigDict()
  c.sharding.mesh = ConfigDict()  # of the preset
  apart = ("tensor", "context")
  c.sharding.rules = dict(embed="fsdp", mlp=apart, heads=apart, audio="fsdp")

  # checkpoint
  c.checkpoint = ConfigDict()
  c.checkpoint.every = 500
  c.checkpoint.keep = 3
  c.checkpoint.local = dict(folder="", every=50, keep=2)  # a folder on each host's own disk

  # survival (docs/running.md)
  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  c.guard = dict(policy="stop", spike=0.0, window=64, limit=10)  # NaN, spikes: stop, skip, rewind
  c.watchdog = dict(stall_seconds=900.0, lost_seconds=40.0)
  c.profile = dict(start=10, steps=3, every=0)
  c.goodput_job = ""  # name for Cloud Logging; "": workdir/goodput alone

  # evaluation
  c.evaluation = ConfigDict()
  c.evaluation.log_every = 20
  c.evaluation.sample_every = 2_000
  c.evaluation.sample_clips = 0  # the validation loss alone; videos come from `lpm generate`

  # plan: what `lpm plan` compiles this for
  c.topology = ""  # of the preset, CHIP:AxBxC[,slices=N]
  c.flags = ()  # groups of compiler options, see lpm_jax/parallel/options.py
  c.assume = ""  # numbers of the model of time, "kernel_share=0.5,dcn=25e9"
  c.codegen = True  # False: stop at the schedule, after seconds, not minutes; times are rough
  c.search = False  # try remat policies, batches, context degrees and flags
  return pods.on_pod(c, arg or "v5p_512", height=480)
