"""Real time on this machine: a session of the shipped puppets at several picture sizes.

Prints the time to make one second of video (backbone, refiner, decoder), the parts of it, time to
the first frame after warm-up, and peak memory.
  python -m benchmarks.stream_speed --sizes 64 96 128
With `--efforts` also the time of a chunk with less work (lpm_jax/streaming/effort.py).
"""

import argparse
import os
import resource
import statistics
import time

import jax
import numpy as np
from flax import nnx

from configs.puppets import stream as recipe
from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.models.conditions import Conditions
from lpm_jax.stream import stream_settings
from lpm_jax.streaming.performer import Performer
from lpm_jax.streaming.sampler import OnlineLPM, coarse_latents, decoded_video, refined_latents
from lpm_jax.streaming.session import Session, SessionSettings
from lpm_jax.weights import loading


def session_times(performer: Performer, size: int, seconds: int) -> tuple[Session, dict]:
  """A session with both tracks sounding; its report."""
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 255, (size, size, 3), np.uint8)
  performer.warm_up(picture)
  session = Session(performer, picture, settings=SessionSettings())
  for _ in range(round(seconds * SAMPLE_RATE / performer.samples)):
    for push in (session.push_partner, session.push_reply):
      push((0.1 * rng.normal(size=performer.samples)).astype(np.float32))
    session.end_reply()
    session.advance()
    session.pull()
  return session, session.report()


def stage_times(performer: Performer, session: Session, turns: int = 10) -> dict[str, float]:
  """Median seconds of each stage, compiled alone."""
  _, performance = session.memory()
  state = performance.stream
  config = performer._online_graph
  online: OnlineLPM = nnx.merge(config, performer._online)
  transformer = online.backbone.config
  past = max(transformer.speak_window[0], transformer.listen_window[0])
  frames = online.settings.causal.frames
  audio = np.zeros((1, past + frames, 4, transformer.audio_width), np.float32)
  nothing, none = np.zeros((1, 0, *state.shape[2:]), np.float32), np.zeros((1, 0), np.int32)
  conditions = Conditions(performer._text(""), audio, audio, nothing, none, none)
  latents, key = np.zeros(state.shape, np.float32), jax.random.key(0)
  calls = {
    "coarse": lambda model, s: coarse_latents(
      model.backbone, s.backbone, model.settings, conditions, key, s.shape
    ),
    "refined": lambda model, s: refined_latents(
      model.refiner, s.refiner, model.settings, conditions, key, latents
    ),
    "decoded": lambda model, s: decoded_video(model.vae, s.decoder, latents),
  }
  found = {}
  for name, call in calls.items():
    run = jax.jit(lambda weights, s, call=call: call(nnx.merge(config, weights), s))
    jax.block_until_ready(run(performer._online, state))
    times = []
    for _ in range(turns):
      begun = time.perf_counter()
      jax.block_until_ready(run(performer._online, state))
      times.append(time.perf_counter() - begun)
    found[name] = statistics.median(times)
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
  parser.add_argument("--seconds", type=int, default=60)
  parser.add_argument("--efforts", action="store_true")
  args = parser.parse_args()
  models = loading.load_models("puppets")
  print(f"{os.cpu_count()} cores, {args.seconds} s of video each; seconds")
  print("preset        size   p50   p95   p99  first frame  backbone refiner decode  peak MB")
  for preset in ("", "half_second"):
    performer = Performer(*models, stream_settings(recipe.get_config(preset).stream))
    share = performer.samples / SAMPLE_RATE
    for size in args.sizes:
      session, report = session_times(performer, size, args.seconds)
      if args.efforts:
        picture = np.zeros((size, size, 3), np.uint8)
        performer.warm_up(picture, efforts=performer.efforts)
      per_second = [report[f"chunk_p{p}"] / share for p in (50, 95, 99)]
      stages = [x / share for x in stage_times(performer, session).values()]
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
      numbers = " ".join(f"{x:5.2f}" for x in per_second)
      parts = " ".join(f"{x:7.2f}" for x in stages)
      name = preset or "second"
      print(
        f"{name:12} {size:5d} {numbers} {report['first_frame']:12.2f}  {parts} {peak:8.0f}",
        flush=True,
      )
      if args.efforts:
        seconds = {e.name.lower(): s / share for e, s in performer.effort_seconds.items()}
        print("  with", ", ".join(f"{name} effort {s:.2f}" for name, s in seconds.items()))


if __name__ == "__main__":
  main()
