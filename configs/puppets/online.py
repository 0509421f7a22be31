"""Online LPM of the shipped Base, in four stages, each from the weights that the one before left.

  lpm distill --config=configs/puppets/online.py:regression --workdir=runs/online/1
  lpm distill --config=configs/puppets/online.py:off_policy --workdir=runs/online/2
  lpm distill --config=configs/puppets/online.py:on_policy --workdir=runs/online/3
  lpm distill --config=configs/puppets/online.py:refiner_start --workdir=runs/online/4_start
  lpm distill --config=configs/puppets/online.py:refiner_clips --workdir=runs/online/4_clips
  lpm distill --config=configs/puppets/online.py:refiner --workdir=runs/online/4

`:refiner_start` leads what the backbone makes of trajectories to their ends, `:refiner_clips` what
it makes of clips back to them (what ships had seven runs of the two, while their loss became what
it is: the model card has them). `:flow` takes the place of `:regression` and needs no trajectories:
clips, chunk by chunk. `:STAGE,tiny` is a model of a few thousand parameters. docs/distillation.md
explains all, and says what came of it: the shipped weights left `:off_policy` out.
"""

from ml_collections import ConfigDict

from configs.puppets import base

STEPS = dict(
  regression=600,
  flow=1_200,
  off_policy=120,
  on_policy=450,
  refiner_start=600,
  refiner_clips=900,
  refiner=100,
)
STAGES = tuple(STEPS)
REGRESSIONS = ("regression", "flow", "refiner_start", "refiner_clips")  # others match distributions
OF_CLIPS = ("flow", "refiner_clips")  # regressions that need no trajectories
TASKS = dict(flow="regression", refiner_clips="refiner_start")  # of a stage that has another name


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe of a stage; `arg` is one of STAGES, or with ",tiny" behind it."""
  stage, _, size = (arg or "").partition(",")
  if stage not in STAGES or size not in ("", "tiny"):
    raise ValueError(f"configs/puppets/online.py: found :{arg}, expected one of {STAGES}")
  tiny = size == "tiny"
  c = base.get_config("tiny" if tiny else None)
  matching = stage not in REGRESSIONS
  c.task = TASKS.get(stage, stage)
  c.export = "refiner" if stage == "refiner" else "backbone"
  c.batch_size = 2 if tiny else 8
  c.steps = 4 if tiny else STEPS[stage]

  # weights: what learns, who teaches, and whose streams the refiner refines
  before = dict(
    regression="puppets",
    flow="puppets",
    refiner_clips="runs/online/4_start/weights",
    refiner="runs/online/4_clips/weights",
  )
  c.student = before.get(stage, "runs/online/1/weights")
  c.teacher = "puppets"
  c.backbone = "runs/online/3/weights"

  # data: the picture and three chunks
  frames = 3 if tiny else 6
  c.data.chunks = 2 if tiny else 3
  c.data.latent_frames = 1 + c.data.chunks * frames
  c.data.height = c.data.width = 64
  if stage in ("regression", "refiner_start"):
    c.data.path = "data/puppets_trajectories"

  # stream (lpm_jax.streaming.sampler.StreamSettings)
  c.stream = ConfigDict()
  c.stream.causal = dict(frames=frames, sink=1 if tiny else 3, window=1 if tiny else 2)
  c.stream.backbone = (1.0, 0.757)
  c.stream.refiner = 0.522
  c.stream.history = 0.1
  c.stream.temperature = 0.2 if stage == "refiner" else 0.5  # streams have 0.2

  # loss
  if not matching:
    c.objective = "flow" if stage in OF_CLIPS else "ode"
    # of the refiner: own history, steps of latents, channels as they are seen, noise of chunks
    c.loss.update(rounds=1, steps=1.5, visible=not tiny, shared=0.5)
  else:
    c.loss = ConfigDict()
    c.loss.shift = 2.5
    c.loss.guidance = (1.5, 1.5)  # of the teacher: text, audio; as videos are made with
    c.loss.every = 2
    c.loss.regression = 0.25  # stage 2
    c.loss.horizon = 3 if tiny else 1  # stage 3: steps of three seconds that a stream lasts
    c.loss.update(corrupted=0.2, corrupted_to=0.5)

  # stages: clips from their beginning
  kinds = dict(speak=0.34, listen=0.22, idle=0.22, dialogue=0.22)
  slow = ((r"^(text|speak|listen)/", 0.1),)
  c.stages = (
    dict(
      name=stage,
      steps=c.steps,
      mixture=kinds,
      extra_references=1.0,
      learning_rates=slow if stage in ("regression", "flow") else (),
    ),
  )

  # optimiser: one, or that of the student and that of the fake score
  c.optimiser.update(learning_rate=3e-4, final_learning_rate=3e-5, warmup=1 if tiny else 50)
  c.optimiser.ema = 0.99
  if matching:
    one = c.optimiser.to_dict() | dict(b1=0.0, b2=0.999, warmup=0)
    c.optimiser = ConfigDict(dict(ema=c.optimiser.ema))
    c.optimiser.student = one | dict(learning_rate=2e-4, final_learning_rate=2e-4)
    c.optimiser.fake = one | dict(learning_rate=2e-4, final_learning_rate=2e-4)

  # sharding: streams that go on lie like the batch
  c.sharding.rules.batch = ("data", "fsdp")

  # checkpoint, evaluation
  c.checkpoint.every = 2 if tiny else 100
  c.evaluation.log_every = 1 if tiny else 10
  c.evaluation.sample_every = 2 if tiny else 1_000  # streams of validation clips, and at the end
  return c
