r"""Pairs of the puppets' Base for preference tuning: candidates, who judges them, and the page.

  lpm prefer --config=configs/puppets/preference_pairs.py:candidates \
    --workdir=data/puppets_candidates
  lpm prefer --config=configs/puppets/preference_pairs.py:pairs --workdir=data/puppets_pairs

or, where people judge: `:page` writes judge.html into --workdir, which saves judgements, and
  lpm prefer --config=configs/puppets/preference_pairs.py:pairs \
    --config.judgements=FILE,FILE --workdir=data/puppets_judged

`:instrument` measures what the margins have to be. A run that was killed goes on.
On 40 validation clips, four candidates each: 54 pairs of 30 clips.
"""

from ml_collections import ConfigDict

TASKS = ("candidates", "pairs", "page", "instrument")


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe of a task; `arg` is one of TASKS."""
  if arg not in TASKS:
    raise ValueError(f"configs/puppets/preference_pairs.py: found :{arg}, expected one of {TASKS}")
  c = ConfigDict()
  c.task = arg
  c.data = ConfigDict()
  c.data.path = "data/puppets_latents/train" if arg == "candidates" else "data/puppets_candidates"
  c.vae = "puppets"  # folder of the autoencoder that made the latents
  c.probe_weights = "puppets"  # of the probe; "": nothing is measured, people judge

  if arg == "candidates":
    c.batch_size = 4
    c.clips_per_shard = 32
    c.frozen = dict(text="", tokenizer="", audio="", length=512)
    c.weights, c.weights_name = "puppets", "base"  # a folder, and the file in it
    c.candidates = ConfigDict()  # fields of lpm_jax.preference.candidates.CandidateSettings
    c.candidates.count = 4
    c.candidates.update(steps=20, solver="unipc", shift=2.5)
    c.candidates.update(text_guidance=1.5, audio_guidance=1.5)  # as videos are made with
    c.candidates.latents = 19  # the whole clip
    c.candidates.slots = 6
    c.candidates.seed = 0
    # sharding: over the devices of each process
    c.sharding = dict(mesh=dict(data=-1), rules=dict(embed="fsdp", mlp="tensor", heads="tensor"))

  if arg == "pairs":
    c.most = 2  # pairs of a clip, the clearest
    c.judgements = ""  # files that the page saved, by commas; "": measurements judge
    # margins: what `:instrument` found at most, rounded up. No event was misread; emotion, misread
    # by up to 1.4, is not judged.
    c.margins = ConfigDict()
    c.margins.update(lips=0.23, rest=0.025, liveliness=0.05, actions=0.5, identity=0.15)
    c.margins.update(nods=0.3, reactions=0.3, gaze=0.3, flicker=0.24)
    c.margins.colour = 1.0  # ΔE; the instrument's error is 0.1, but nobody sees less than 1

  if arg == "page":
    c.title = "Which is better?"
    c.pairs, c.first = 24, 0  # clips that are shown, from which on
    c.seed = 0  # of the two candidates of a clip
    c.dimensions = ("lips", "rest", "liveliness", "actions", "emotion", "identity")
    c.scale = 4  # enlargement of the videos
    c.crf = 18  # their quality

  if arg == "instrument":
    c.clips_per_kind, c.frames = 10, 73

  c.distributed = dict(coordinator="", processes=0, process=-1, automatic=True)
  return c
