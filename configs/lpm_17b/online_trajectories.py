"""Trajectories of Base LPM at 17.435B, from which the causal backbone starts (ODE init).

  lpm distill --config=configs/lpm_17b/online_trajectories.py --config.weights=FOLDER \
    --workdir=data/lpm_trajectories

Every host writes its share of the shards with the chips it has itself; it needs 70 GB for weights
in fp32 over them. Products are in bf16, as the weights' own config says. 120 evaluations a clip.
"""

from ml_collections import ConfigDict

from configs.puppets import online_trajectories


def get_config(arg: str | None = None) -> ConfigDict:
  """480p; `:720p` for weights trained at that size."""
  if arg not in (None, "", "720p"):
    raise ValueError(f"configs/lpm_17b/online_trajectories.py: found :{arg}, expected :720p")
  c = online_trajectories.get_config()
  c.data.path = "data/lpm_latents/train"  # clips of 125 frames, with features of frozen encoders
  c.weights = "weights/lpm"
  c.clips_per_shard = 64

  c.trajectory.shift = 5.0 if arg else 3.0  # as in training
  c.trajectory.update(text_guidance=3.5, audio_guidance=3.5)  # CausVid's, for text; ours for audio
  c.trajectory.chunks = 5  # 31 of the 32 latents
  c.trajectory.slots = 8

  # sharding: weights and clips over fsdp, eight clips on the four or eight devices of a host
  with c.unlocked():
    c.sharding = dict(mesh=dict(fsdp=-1), rules=dict(embed="fsdp", mlp="fsdp", heads="fsdp"))
    c.sharding.rules.audio = "fsdp"
  return c
