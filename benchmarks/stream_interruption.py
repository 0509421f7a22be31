"""How long a mouth goes on after an interruption, read from the frames by the probe.

A character says its track; at random chunks it is interrupted, one chunk having been made and not
shown, and is silent for three. A mouth counts as closed when it is no wider open than in 95 % of
the frames in which the same character has never spoken.
  python -m data_pipelines.puppets.showcase --workdir=demo/inputs
  python -m benchmarks.stream_interruption demo/inputs/character1 demo/inputs/character2
"""

import argparse

import numpy as np

from configs.puppets import stream as recipe
from data_pipelines.puppets.pose import POSE_INDEX
from lpm_jax import media
from lpm_jax.evaluation.probe import Probe, load_probe, read_video
from lpm_jax.stream import stream_settings
from lpm_jax.streaming.performer import Performer
from lpm_jax.streaming.session import Session
from lpm_jax.weights import loading

IDLE_CHUNKS, SILENT_CHUNKS = 6, 3


def opening(probe: Probe, frames: np.ndarray) -> np.ndarray:
  """mouth_open of frames uint8 [T, 64, 64, 3], 0 closed to 1 wide: [T]."""
  return read_video(probe, frames).pose[:, POSE_INDEX["mouth_open"]]


def trials(
  performer: Performer, probe: Probe, folder: str, count: int, seed: int
) -> dict[str, np.ndarray]:
  """Openings: idle [T], speaking [T], and after each interruption [count, SILENT_CHUNKS * T]."""
  inputs = media.read_inputs(media.Request(inputs=folder, size=64))
  session = Session(performer, inputs.picture, inputs.references, seed=seed)
  track, rng = inputs.speak_audio, np.random.default_rng(seed)
  loud = np.convolve(track**2, np.ones(performer.samples) / performer.samples, "valid")
  starts = np.flatnonzero(loud > np.percentile(loud, 60))  # somebody speaks in all of it

  def chunk() -> np.ndarray:
    session.advance()
    return session.pull().frames

  idle = [chunk() for _ in range(IDLE_CHUNKS)]
  speaking, after = [], []
  for _ in range(count):
    for _ in range(rng.integers(2, 5)):
      begin = rng.choice(starts)
      session.push_reply(track[begin : begin + performer.samples])
      speaking.append(chunk())
    session.push_reply(track[begin : begin + performer.samples])
    session.advance()  # made, not shown
    session.interrupt()
    after.append(np.concatenate([chunk() for _ in range(SILENT_CHUNKS)]))
  read = {"idle": np.concatenate(idle), "speaking": np.concatenate(speaking)}
  found = {name: opening(probe, frames) for name, frames in read.items()}
  return found | {"after": np.stack([opening(probe, frames) for frames in after])}


def closing_seconds(after: np.ndarray, closed: float, fps: int) -> np.ndarray:
  """Seconds until the mouth is closed and stays so, [trials]; infinite where it does not."""
  open_still = after > closed
  last = after.shape[1] - np.argmax(open_still[:, ::-1], axis=1)
  last[~open_still.any(axis=1)] = 0
  return np.where(last == after.shape[1], np.inf, last / fps)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("inputs", nargs="+", help="folders as lpm stream takes them")
  parser.add_argument("--trials", type=int, default=20)
  args = parser.parse_args()
  models, probe = loading.load_models("puppets"), load_probe()
  print(f"opening of the mouth, 0 closed to 1 wide, {args.trials} interruptions a character")
  print("preset       character    idle  p95 | speaking | chunk 1  2     3   | closed in chunk 1")
  for preset in ("", "half_second"):
    performer = Performer(*models, stream_settings(recipe.get_config(preset).stream))
    for i, folder in enumerate(args.inputs):
      found = trials(performer, probe, folder, args.trials, seed=i)
      closed = np.percentile(found["idle"], 95)
      chunks = found["after"].reshape(args.trials, SILENT_CHUNKS, performer.frames)
      ends = chunks[:, 0, -2:].mean(axis=1) <= closed
      seconds = np.median(closing_seconds(chunks[:, 0], closed, performer.fps))
      print(
        f"{preset or 'second':12} {i:9d} {found['idle'].mean():7.3f} {closed:5.3f} | "
        f"{found['speaking'].mean():8.3f} | {' '.join(f'{x:5.3f}' for x in chunks.mean((0, 2)))} | "
        f"{ends.mean():.0%} at its end, after {seconds:.2f} s (median)",
        flush=True,
      )


if __name__ == "__main__":
  main()
