r"""Candidates, the page and pairs of Base at 17.435B: people judge, for no probe reads such videos.

  lpm prefer --config=configs/lpm_17b/preference_pairs.py:candidates --config.weights=FOLDER \
    --workdir=data/lpm_candidates
  lpm prefer --config=configs/lpm_17b/preference_pairs.py:page --config.first=0 --workdir=judging/0
  lpm prefer --config=configs/lpm_17b/preference_pairs.py:pairs --config.judgements=FILE,FILE \
    --workdir=data/lpm_pairs
"""

from ml_collections import ConfigDict

from configs.puppets import preference_pairs

TASKS = ("candidates", "pairs", "page")


def get_config(arg: str | None = None) -> ConfigDict:
  """480p; `arg` is one of TASKS."""
  if arg not in TASKS:
    raise ValueError(f"configs/lpm_17b/preference_pairs.py: found :{arg}, expected one of {TASKS}")
  c = preference_pairs.get_config(arg)
  c.data.path = "data/lpm_latents/train" if arg == "candidates" else "data/lpm_candidates"
  c.vae = "weights/wan"
  c.probe_weights = ""  # people judge

  if arg == "candidates":
    c.weights = "weights/lpm"
    c.batch_size = 8
    c.clips_per_shard = 16
    c.candidates.update(steps=40, shift=3.0)  # of configs/lpm_17b/generate.py; shift as in training
    c.candidates.update(text_guidance=5.0, audio_guidance=4.0)  # InfiniteTalk's
    c.candidates.update(latents=32, slots=8)  # as in training
    # sharding: weights and clips over the devices of a host
    with c.unlocked():
      c.sharding = dict(mesh=dict(fsdp=-1), rules=dict(embed="fsdp", mlp="fsdp", heads="fsdp"))
      c.sharding.rules.audio = "fsdp"

  if arg == "page":
    c.pairs = 12
    c.scale, c.crf = 1, 23
    c.dimensions = ("lips", "rest", "reactions", "liveliness", "gaze", "identity", "colour")
  return c
