"""What a stream of the 17B model asks of a TPU topology: memory, predicted time, layouts.

  pip install libtpu
  JAX_PLATFORMS=cpu lpm plan --config=configs/lpm_17b/plan_stream.py --config.topology=v6e:2x4 \
    --workdir=plans/v6e_2x4

Compiles backbone, refiner and decoder for devices that are not there (minutes, 4 GB of memory).
"""

from ml_collections import ConfigDict

from configs.lpm_17b import base_480p
from configs.puppets import stream


def get_config(arg: str | None = None) -> ConfigDict:
  """480p; `:720p` for the larger picture."""
  if arg not in (None, "", "720p"):
    raise ValueError(f"configs/lpm_17b/plan_stream.py: found :{arg}, expected :720p")
  c = ConfigDict()
  c.topology = "v6e:2x4"

  # what is streamed
  c.height, c.width = (720, 1280) if arg else (480, 832)
  c.frames_per_second = 24
  c.references = 4
  c.text_length = 512
  c.past_audio = 12  # latent frames before the chunk
  c.stream = stream.get_config().stream
  c.stream.history = None  # as Online weights do that keep what their last evaluation leaves

  # model
  c.transformer = base_480p.get_config().model.transformer
  c.transformer.attention = "chunk"

  # devices of a stage share a chunk by "tensor" (heads and inner widths; tokens are gathered) or by
  # "context" (tokens; weights are gathered, and heads traded for tokens around attention)
  c.apart = "context"

  # model of time; see lpm_jax/plan/chips.py
  c.assumed = ConfigDict()  # fields of Chip that replace the table's
  c.codegen = True  # False: stop at the schedule, after seconds, not minutes; times are rough
  c.flags = ("async",)  # groups of compiler options, lpm_jax/parallel/options.py
  return c
