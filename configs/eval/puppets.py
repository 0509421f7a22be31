"""Base LPM on puppets, measured on held-out characters, voices, sentences and a held-out style.

Streams are measured beside it by configs/eval/online.py.

lpm evaluate --config=configs/eval/puppets.py --workdir=runs/evaluation
lpm evaluate --config=configs/eval/puppets.py:quick --workdir=demo/evaluation
"""

from ml_collections import ConfigDict

from configs.puppets import stream


def get_config(arg: str | None = None) -> ConfigDict:
  """`:quick` has a few clips: enough to see the report, too few to trust its numbers."""
  if arg not in (None, "", "quick"):
    raise ValueError(f"unknown preset {arg!r}, expected quick")
  quick = arg == "quick"
  c = ConfigDict()
  c.title = "Base LPM on puppets"
  c.command = f"lpm evaluate --config=configs/eval/puppets.py{':quick' if quick else ''}"
  # clips per kind of scene (speak, listen, idle, dialogue), and characters of the identity suite
  c.suites = ConfigDict()
  c.suites.heldout = 1 if quick else 24
  c.suites.heldout_style = 0 if quick else 8
  c.suites.identity = 0 if quick else 8
  c.suites.frames = 73
  # systems: also "online", the stream of c.weights, and names of c.online
  c.systems = ("render", "vae", "model", "still")
  c.weights = (
    "puppets"  # the shipped weights, or a folder with base.safetensors and vae.safetensors
  )
  c.generation = ConfigDict()  # fields of lpm_jax.generate.GenerateSettings
  c.generation.steps = 8 if quick else 20
  c.generation.shift = 2.5  # as in training
  c.generation.temperature = 0.7
  c.generation.references = 13  # all that a clip can carry
  c.online = (
    ConfigDict()
  )  # further streams: name = folder (see lpm_jax.weights.loading.load_stream)
  c.stream = stream.get_config().stream  # of all streams
  # instrument
  c.probe_weights = "puppets"
  c.probe_characters = 8 if quick else 100  # a style, for the probe's own error
  # execution
  c.batch = 4
  c.shown = 4 if quick else 10
  return c
