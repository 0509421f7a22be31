"""Online LPM at 17.435B, 832x480, in four stages (docs/distillation.md). Nobody has trained it.

  lpm distill --config=configs/lpm_17b/online_trajectories.py --workdir=data/lpm_trajectories
  for STAGE in regression off_policy on_policy refiner_start refiner: lpm distill \
    --config=configs/lpm_17b/online_480p.py:$STAGE,v5p_512 --workdir=gs://BUCKET/online/$STAGE

and the weights in each stage's workdir go to the next one, --config.student=... Rates, update ratio
and batch are those of CausVid and Self Forcing; what is of a stream, of plan_stream.py.
"""

from ml_collections import ConfigDict

from configs.lpm_17b import base_480p, pods
from configs.puppets import online

STAGES = ("regression", "off_policy", "on_policy", "refiner_start", "refiner")


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe of a stage on a pod: one of STAGES, then a preset of pods.py, by default v5p_512."""
  stage, _, pod = (arg or "").partition(",")
  if stage not in STAGES:
    raise ValueError(f"configs/lpm_17b/online_480p.py: found :{arg}, expected one of {STAGES}")
  c = pods.streams_on_pod(base_480p.get_config(), pod or "v5p_512")
  c.task, c.export = stage, "refiner" if stage == "refiner" else "backbone"
  matching = stage not in ("regression", "refiner_start")
  c.steps = dict(regression=3_000, off_policy=2_000).get(stage, 1_500)

  # weights: what learns, who teaches, and whose streams the refiner refines
  before = dict(
    regression="weights/lpm",
    off_policy="weights/lpm_regression",
    on_policy="weights/lpm_off_policy",
    refiner_start="weights/lpm_regression",
    refiner="weights/lpm_refiner_start",
  )
  c.student = before[stage]
  c.teacher = "weights/lpm"
  c.backbone = "weights/lpm_on_policy"
  c.frozen_dtype = "bfloat16"  # of teacher and frozen backbone

  # data: the picture and five chunks, 31 of the 32 latents
  c.data.chunks = 5
  c.data.latent_frames = 31
  c.data.slots = 4
  if not matching:
    c.data.path = "data/lpm_trajectories"
    c.levels = (1.0, 0.757, 0.522, 0.0)  # of the trajectories

  # stream (lpm_jax.streaming.sampler.StreamSettings)
  c.stream = online.get_config("on_policy").stream

  # loss
  if not matching:
    c.objective = "ode"
    # refiner_start: own history, steps of latents, all channels alike
    c.loss.update(rounds=1, steps=1.5, visible=False, shared=0.0)
  else:
    c.loss = ConfigDict(dict(shift=3.0, guidance=(3.5, 3.5), every=5, regression=0.25))
    c.loss.update(horizon=8, corrupted=0.2, corrupted_to=0.5)

  # stages: clips from their beginning
  kinds = dict(speak=0.35, listen=0.35, idle=0.1, dialogue=0.2)
  c.stages = (dict(name=stage, steps=c.steps, mixture=kinds, extra_references=1.0),)

  # optimiser: one, or that of the student and that of the fake score
  c.optimiser.update(learning_rate=1e-5, final_learning_rate=1e-6, warmup=100)
  c.optimiser.ema = 0.99
  if matching:
    one = c.optimiser.to_dict() | dict(b1=0.0, b2=0.999, warmup=0)
    c.optimiser = ConfigDict(dict(ema=0.99))
    c.optimiser.student = one | dict(learning_rate=2e-6, final_learning_rate=2e-6)
    c.optimiser.fake = one | dict(learning_rate=4e-7, final_learning_rate=4e-7)

  # sharding: streams that go on lie like the batch
  c.sharding.rules.batch = ("data", "fsdp")

  # checkpoint, evaluation
  c.checkpoint.every = 100
  c.evaluation.update(log_every=10, sample_every=0)
  return c
