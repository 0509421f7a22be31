"""Whether a stream of puppets ends as it began: the same dialogue at the start and after hours.

  python -m data_pipelines.puppets.showcase --workdir=runs/dialogue --characters=1 --scenes=30
  lpm stream --config=configs/puppets/stream.py --config.inputs=runs/dialogue/character1 \\
    --config.minutes=120 --config.repeat=True --config.scale=2 --workdir=runs/long
  lpm evaluate --config=configs/eval/long_run.py --config.inputs=runs/dialogue/character1 \\
    --config.video=runs/long/stream.mp4 --workdir=runs/long

Thirty scenes of ten seconds are five minutes, which `repeat` plays over and over: every block of
five minutes has the same sound and text, so blocks differ by what the stream has become.
"""

from ml_collections import ConfigDict

from configs.puppets import stream


def get_config(arg: str | None = None) -> ConfigDict:
  """The recipe; no presets."""
  if arg:
    raise ValueError(f"configs/eval/long_run.py: found :{arg}, expected none")
  c = ConfigDict()
  c.task = "long_run"
  c.inputs = "runs/dialogue/character1"  # as the showcase wrote them, with truth.npz
  c.video = "runs/long/stream.mp4"  # what `lpm stream` made of them with repeat
  c.chunk = 4 * stream.get_config().stream.causal.frames  # video frames between two seams
  c.probe_weights = "puppets"
  c.tolerance = 0.02  # of the first block, for lips, attributes and colour
  return c
