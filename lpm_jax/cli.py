"""`lpm VERB`: one short function a verb.

Every verb takes --config=FILE[:arg], --config.key=value and --workdir=DIR.
"""

import sys
import time
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that is written (local or a bucket path).")
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:arg] with get_config(arg).")


def data_puppets(config, workdir: str):
  """Render puppet clips into a TFDS dataset (ArrayRecord)."""
  from data_pipelines.puppets import builder

  builder.build(workdir, dict(config.clips), seed=config.seed, kind=config.kind)


def data_encode(config, workdir: str):
  """Encode clips once with the VAE: latents in ArrayRecord, which training reads."""
  from data_pipelines import encode

  encode.encode(config, workdir)


def train(config, workdir: str):
  """Train what the config names; continues from the newest checkpoint in the workdir."""
  begun = time.time()
  from lpm_jax.training import distributed

  distributed.start(config.get("distributed"))
  from lpm_jax.training import loop

  loop.train(config, workdir, begun=begun)


def distill(config, workdir: str):
  """Make trajectories of a teacher, or train a stage of distillation on them."""
  if config.task != "trajectories":
    train(config, workdir)
    return
  from lpm_jax.training import distributed

  distributed.start(config.get("distributed"))
  from lpm_jax.distillation import trajectories

  trajectories.write_trajectories(config, workdir)


def prefer(config, workdir: str):
  """Make pairs of a better and a worse video: candidates, a page to judge them, pairs."""
  from lpm_jax.training import distributed

  distributed.start(config.get("distributed"))
  from lpm_jax.preference import run

  run.prefer(config, workdir)


def generate(config, workdir: str):
  """Generate a video from a picture, references, audio and text (offline, any length)."""
  from lpm_jax import generate

  generate.generate_to_file(config, workdir)


def stream(config, workdir: str):
  """Stream a character chunk by chunk, as a live session does, to a file of any length."""
  from lpm_jax import stream

  stream.stream_to_file(config, workdir)


def plan(config, workdir: str):
  """Compile a train step, or a stream, for a TPU topology that is not there: memory, time."""
  if "task" not in config:
    from lpm_jax.plan import stream

    stream.plan(config, workdir)
  elif config.get("search"):
    from lpm_jax.plan import search

    search.search(config, workdir)
  else:
    from lpm_jax.plan import train

    train.plan(config, workdir)


def evaluate(config, workdir: str):
  """Measure a model beside the render, the VAE and a still picture; JSON and HTML report."""
  if config.get("task") == "long_run":
    from lpm_jax.evaluation import long_run

    long_run.measure(config, workdir)
    return
  from lpm_jax.evaluation import run

  run.evaluate(config, workdir)


def weights_import(config, workdir: str):
  """Take a published checkpoint over (Wan2.1, umT5, wav2vec 2.0); `lpm train` starts from it."""
  from lpm_jax.weights import importing

  importing.import_weights(config, workdir)


def weights_export(config, workdir: str):
  """Write weights as a checkpoint that diffusers reads."""
  from lpm_jax.weights import exporting

  exporting.export_weights(config, workdir)


def weights_check(config, workdir: str):
  """Compare an import with its source, tensor by tensor."""
  from lpm_jax.weights import importing

  importing.check_weights(config, workdir)


def weights_pack(config, workdir: str):
  """Store weights with eight bits a number, for shipping."""
  from lpm_jax.weights import packing

  packing.pack_weights(config, workdir)


VERBS: dict[str, Callable] = {
  "data puppets": data_puppets,
  "data encode": data_encode,
  "train": train,
  "distill": distill,
  "prefer": prefer,
  "generate": generate,
  "stream": stream,
  "plan": plan,
  "evaluate": evaluate,
  "weights import": weights_import,
  "weights export": weights_export,
  "weights check": weights_check,
  "weights pack": weights_pack,
}


def _usage() -> str:
  lines = [f"  lpm {verb:<14} {run.__doc__}" for verb, run in VERBS.items()]
  return (
    "usage: lpm VERB --config=FILE[:arg] [--config.key=value ...] --workdir=DIR\n\n"
    + "\n".join(lines)
  )


def main():
  """Entry point of the `lpm` command."""
  words = sys.argv[1:]
  verb = next((v for v in VERBS if words[: len(v.split())] == v.split()), None)
  if verb is None:
    print(_usage())
    sys.exit(0 if words in ([], ["--help"], ["help"]) else 2)

  def run(argv: list[str]):
    logging.set_verbosity(logging.WARNING)
    if argv[1:]:
      raise app.UsageError(f"unknown words after `lpm {verb}`: {' '.join(argv[1:])}")
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise app.UsageError(f"`lpm {verb}` needs --config=FILE[:arg] and --workdir=DIR")
    try:
      VERBS[verb](_CONFIG.value, _WORKDIR.value)
    except (ValueError, OSError) as error:
      if flags.FLAGS.pdb_post_mortem:
        raise
      sys.exit(f"lpm {verb}: {error}")

  app.run(run, argv=[f"lpm {verb}", *words[len(verb.split()) :]])


if __name__ == "__main__":
  main()
