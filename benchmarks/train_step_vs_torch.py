"""Training speed of the Base model against the same step in plain PyTorch, as a ratio in one run.

Same model, same parameters (the outputs are compared first), same batch shapes, same precision
(fp32), same optimiser, clipping and moving average. The two take turns on the same cores; medians
and best turns are printed.
  python -m benchmarks.train_step_vs_torch --torch-python=PATH_OF_A_PYTHON_WITH_TORCH
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from benchmarks.comparison import Worker, awakened
from configs.puppets import base
from data_pipelines.clip import EncodedClip, audio_samples
from data_pipelines.loader import EXTENSION, ExampleConfig, example_from_clip
from lpm_jax.models import audio, text
from lpm_jax.models.lpm import LPM
from lpm_jax.training.base import BaseTask
from lpm_jax.training.optimiser import make_optimiser
from lpm_jax.training.state import create_state
from lpm_jax.training.step import make_step
from lpm_jax.weights.shipped import flat_state

WORKER = pathlib.Path(__file__).with_name("torch_step.py")


def make_batch(config: ConfigDict, task: BaseTask) -> dict[str, np.ndarray]:
  """A batch of noise, cut as training cuts clips, with a global and other references."""
  rng = np.random.default_rng(0)
  latents, channels = config.data.latent_frames, config.model.transformer.channels
  frames = 4 * (latents - 1) + 1
  cut = ExampleConfig(latents, config.data.slots, task.model_config.text.length, 1.0, 1.0)

  def example() -> dict[str, np.ndarray]:
    tracks = np.clip(rng.normal(scale=0.1, size=(2, audio_samples(frames))), -1, 1)
    clip = EncodedClip(
      *("noise",) * 5,
      fps=24.0,
      text="She speaks, looks to the left, then smiles and nods.",
      latents=rng.normal(size=(latents, 8, 8, channels)).astype(np.float32),
      speak_audio=tracks[0].astype(np.float32),
      listen_audio=tracks[1].astype(np.float32),
      state=np.ones(frames, np.int8),
      references=rng.normal(size=(6, 8, 8, channels)).astype(np.float32),
      reference_kind=np.array([0, 1, 1, 2, 2, 2], np.int32),
      reference_label=np.array([0, 1, 2, 1, 4, 5], np.int32),
    )
    return example_from_clip(clip, rng, cut)

  examples = [example() for _ in range(config.batch_size)]
  return {name: np.stack([row[name] for row in examples]) for name in examples[0]}


def write_exchange(
  path: pathlib.Path,
  config: ConfigDict,
  task: BaseTask,
  model: LPM,
  batch: dict,
  timestep: np.ndarray,
):
  """All that the PyTorch worker needs: parameters, batch, sizes, tables of the mel front end."""
  sizes = dataclasses.asdict(task.model_config)
  sizes["text"]["vocabulary"] = text.VOCABULARY
  rows = (config.data.latent_frames + EXTENSION[1]) * audio.FRAMES_PER_LATENT * audio.MELS_PER_FRAME
  fps = task.model_config.audio.fps
  centres = np.round((np.arange(rows) + 0.5) * audio.SAMPLE_RATE / (fps * audio.MELS_PER_FRAME))
  lead = round((audio.FRAMES_PER_LATENT - 1) * audio.SAMPLE_RATE / fps) + audio.WINDOW // 2
  filters = librosa.filters.mel(
    sr=audio.SAMPLE_RATE, n_fft=audio.FFT, n_mels=task.model_config.audio.bands
  )
  optimiser = config.optimiser
  settings = {
    "model": sizes,
    "lead": lead,
    "threads": os.cpu_count(),
    "learning_rate": optimiser.learning_rate,
    "betas": [optimiser.b1, optimiser.b2],
    "weight_decay": optimiser.weight_decay,
    "clip_norm": optimiser.clip_norm,
    "ema": optimiser.ema,
    "shift": config.loss.shift,
    "drops": {name: config.loss[f"drop_{name}"] for name in ("text", "speak", "listen")},
  }
  np.savez(
    path,
    settings=json.dumps(settings),
    index=centres.astype(int)[:, None] + np.arange(audio.WINDOW),
    filters=filters.astype(np.float32),
    timestep=timestep,
    **{f"batch/{name}": array for name, array in batch.items()},
    **{f"params/{name}": np.asarray(leaf[...]) for name, leaf in flat_state(model).items()},
  )


def predict(model: LPM, batch: dict[str, np.ndarray], timestep: np.ndarray) -> np.ndarray:
  """Velocity of the batch's latents, all windows starting at the first latent."""
  graphdef, state = nnx.split(model)
  frames = timestep.shape[1]

  @jax.jit
  def run(state: nnx.State, batch: dict) -> jax.Array:
    lpm = nnx.merge(graphdef, state)
    heard = lpm.encode_conditions(batch, frames + EXTENSION[1])
    heard = heard.replace(speak=heard.speak[:, :frames], listen=heard.listen[:, :frames])
    return lpm(batch["latents"], jnp.asarray(timestep), heard)

  return np.asarray(run(state, batch))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
  parser.add_argument("--turns", type=int, default=6)
  parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
  parser.add_argument("--preset", default=None, help="of configs/puppets/base.py")
  args = parser.parse_args()

  config = base.get_config(args.preset)
  config.loss.motion = 0.0  # the PyTorch step has the plain loss
  task = BaseTask(config)
  batch = make_batch(config, task)
  model = awakened(task.build(nnx.Rngs(0)))
  frames = config.data.latent_frames
  timestep = np.linspace(0, 1, config.batch_size * frames, dtype=np.float32).reshape(-1, frames)
  with tempfile.TemporaryDirectory() as folder:
    exchange = pathlib.Path(folder) / "exchange.npz"
    write_exchange(exchange, config, task, model, batch, timestep)
    worker = Worker(args.torch_python, WORKER, str(exchange))
    answer = pathlib.Path(folder) / "velocity.npy"
    worker.ask(f"predict {answer}")
    expected, found = predict(model, batch, timestep), np.load(answer)
  difference = np.abs(expected - found).max() / np.abs(expected).max()
  print(f"largest difference of the two velocities: {difference:.1e} of the largest value")
  if difference > 1e-3:
    sys.exit("the two models are not the same: no speed is compared")

  optimiser = make_optimiser(config.optimiser, config.steps)
  state = create_state(model, optimiser)
  step_fn = make_step(task, nnx.graphdef(model), optimiser, seed=0, ema_decay=config.optimiser.ema)
  compiled = jax.jit(step_fn, donate_argnums=0).lower(state, batch).compile()
  on_device = jax.device_put(batch)

  def turn(state: object) -> tuple[object, float]:
    begin = time.perf_counter()
    for _ in range(args.steps):
      state, metrics = compiled(state, on_device)
      float(metrics["loss"])  # the PyTorch loop reads its loss every step too
    return state, time.perf_counter() - begin

  state, _ = turn(state)
  worker.ask(f"steps {args.steps}")
  seconds = {"JAX": [], "PyTorch": []}
  for i in range(args.turns):
    state, taken = turn(state)
    seconds["JAX"].append(taken)
    seconds["PyTorch"].append(worker.ask(f"steps {args.steps}")["seconds"])
    print(
      f"turn {i}: "
      + ", ".join(f"{k} {v[-1] / args.steps:.3f} s a step" for k, v in seconds.items())
    )
  worker.close()

  clips = config.batch_size * args.steps
  print(
    f"\nbatch {config.batch_size}, {frames} latent frames, {config.data.slots} references, fp32, "
    f"{os.cpu_count()} cores; jax {jax.__version__}, torch {worker.about['torch']} eager"
  )
  for name, times in seconds.items():
    median, best = clips / statistics.median(times), clips / min(times)
    print(f"{name:8} {median:6.2f} clips/s median, {best:6.2f} best")
  median, best = (f(seconds["PyTorch"]) / f(seconds["JAX"]) for f in (statistics.median, min))
  print(f"JAX is {median:.2f} times as fast by the medians ({best:.2f} by the best turns)")


if __name__ == "__main__":
  main()
