"""Base LPM at 1280x720, continued from base_480p: the same recipe, four devices or more to a clip.

Expected result: none yet, nobody has trained it.
  lpm train --config=configs/lpm_17b/base_720p.py:v5p_512 \
    --config.init=gs://BUCKET/runs/base_480p/weights --workdir=gs://BUCKET/runs/base_720p
"""

from ml_collections import ConfigDict

from configs.lpm_17b import base_480p, pods


def get_config(arg: str | None = None) -> ConfigDict:
  """Presets are the pods of configs/lpm_17b/pods.py; by default v5p_512."""
  c = base_480p.get_config()
  c.steps = 20_000
  c.data.height, c.data.width = 720, 1280
  c.loss.shift = 5.0  # Wan2.1 at 720p
  c.stages = c.stages[2:]  # identity, extension
  c.optimiser.learning_rate = 1e-5
  return pods.on_pod(c, arg or "v5p_512", height=720)
