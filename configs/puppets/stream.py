r"""A live session from files: picture, up to two audio files and timed texts, chunk by chunk.

  lpm stream --config=configs/puppets/stream.py --config.inputs=demo/inputs/character1 \
    --config.minutes=45 --config.repeat=True --workdir=runs/stream

A stream that was killed goes on from its last whole part. `:half_second` answers twice as fast.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; `arg` is None or "half_second"."""
  if arg not in (None, "", "half_second"):
    raise ValueError(f"configs/puppets/stream.py: found :{arg}, expected :half_second")
  c = ConfigDict()
  c.seed = 0

  # what a person brings; see configs/puppets/generate.py
  c.inputs = ""
  c.picture = ""
  c.references = ""
  c.speak_audio = ""
  c.listen_audio = ""
  c.dialogue_audio = ""
  c.diarisation = ""
  c.character = ""
  c.text = ""
  c.seconds = 0.0  # 0: as long as the longer track
  c.minutes = 0.0  # instead of seconds
  c.repeat = False  # sound and texts begin anew when they end

  # model
  # the shipped weights, or a folder: backbone.safetensors (else base.safetensors streams as it is),
  # refiner.safetensors where there is one, vae.safetensors
  c.weights = "puppets"
  c.vae = ""  # folder of the autoencoder where that of the weights has none
  c.size = 64
  c.stream = ConfigDict()  # fields of lpm_jax.streaming.sampler.StreamSettings
  c.stream.causal = dict(frames=6, sink=3, window=2)
  c.stream.backbone = (1.0, 0.757)
  c.stream.refiner = 0.522
  c.stream.history = 0.1
  c.stream.temperature = 0.2
  c.session = ConfigDict()  # fields of lpm_jax.streaming.session.SessionSettings

  # output
  c.output = "stream.mp4"
  c.scale = 4
  c.part_seconds = 60.0

  if arg == "half_second":
    c.stream.causal = dict(frames=3, sink=6, window=4)
  return c
