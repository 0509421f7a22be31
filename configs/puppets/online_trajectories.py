"""Trajectories of the puppets' Base model, from which the causal backbone starts (ODE init).

  lpm distill --config=configs/puppets/online_trajectories.py --workdir=data/puppets_trajectories

A run that was killed goes on with the shards that are missing. For validation clips:
  --config.data.path=data/puppets_latents/validation --workdir=data/puppets_trajectories_validation
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; no presets."""
  if arg:
    raise ValueError(f"configs/puppets/online_trajectories.py: found :{arg}, expected none")
  c = ConfigDict()
  c.task = "trajectories"
  c.batch_size = 8
  c.clips_per_shard = 64

  # data
  c.data = ConfigDict()
  c.data.path = "data/puppets_latents/train"
  c.frozen = dict(text="", tokenizer="", audio="", length=512)

  # teacher
  c.weights = "puppets"  # the shipped weights, or a folder
  c.weights_name = "base"  # of the file in it
  c.trajectory = ConfigDict()  # fields of lpm_jax.distillation.trajectories.TrajectorySettings
  c.trajectory.levels = (1.0, 0.757, 0.522, 0.0)  # T0, T1, T2 of configs/puppets/stream.py
  c.trajectory.steps = 20
  c.trajectory.shift = 2.5  # as Base was trained with
  c.trajectory.update(text_guidance=1.5, audio_guidance=1.5)  # as videos are made with
  c.trajectory.causal = dict(frames=6, sink=3, window=2)
  c.trajectory.chunks = 3  # with the picture 19 latents, the whole clip
  c.trajectory.slots = 6
  c.trajectory.teacher = "bidirectional"  # "causal": weights of a teacher-forced model
  c.trajectory.history = 0.1  # timestep of what a causal teacher sees of earlier chunks
  c.trajectory.seed = 0

  # sharding: over the devices of each process
  c.sharding = dict(mesh=dict(data=-1), rules=dict(embed="fsdp", mlp="tensor", heads="tensor"))
  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  return c
