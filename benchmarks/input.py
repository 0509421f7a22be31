"""What the input pipeline gives: clips a second, host CPU, memory, against what a pod's host needs.

Writes clips of noise in the shapes of the 17B scale (480p: latents, 13 references, umT5 and wav2vec
features) and of the puppets into a temporary folder, and reads them as training does, through
`BaseTask.stages` and `loader.batches`, each case in a process of its own. The files lie in the page
cache: storage is not measured, the MB a clip say what it must give.
  python -m benchmarks.input --clips=16 --batches=12
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from ml_collections import ConfigDict
from ml_dtypes import bfloat16

from configs.lpm_17b import base_480p
from configs.puppets import base as puppets
from data_pipelines import loader, records
from data_pipelines.clip import FEATURES_PER_SECOND, SAMPLE_RATE, EncodedClip, audio_samples
from lpm_jax.training.base import BaseTask

CHIPS_OF_A_HOST = 4  # v5p
BUFFER = 4  # batches that `loader.batches` keeps ready
CASES = (
  ("17b", "float32", 2),
  ("17b", "bfloat16", 1),
  ("17b", "bfloat16", 2),
  ("17b", "bfloat16", 4),
  ("puppets", "float32", 1),
  ("puppets", "float32", 2),
  ("puppets", "float32", 4),
)


def get_config(scale: str) -> ConfigDict:
  """The training config of a scale, in one stage with all references."""
  config = {"17b": base_480p, "puppets": puppets}[scale].get_config()
  stage = dict(name="all", steps=1, mixture=dict(speak=0.5, idle=0.5), extra_references=0.7)
  with config.ignore_type():
    config.stages = (stage,)
  return config


def noise_clip(scale: str, index: int, rng: np.random.Generator) -> EncodedClip:
  """A clip of the shapes that a scale trains on: 5 s of 832x480, or 3 s of 64x64."""
  config = get_config(scale)
  frames, channels = config.data.latent_frames, config.model.transformer.get("channels", 16)
  size = (60, 104) if scale == "17b" else (8, 8)
  samples = audio_samples(4 * (frames - 1) + 1)
  features = {}
  if scale == "17b":
    seconds = -(-samples // SAMPLE_RATE)
    shape = (seconds * FEATURES_PER_SECOND, 25, 1024)
    features = {f"{track}_features": _half(shape, rng) for track in ("speak", "listen")}
    features["text_features"] = _half((512, 4096), rng)
  return EncodedClip(
    *(f"{scale}-{index}", "nobody", "noise", "benchmark", "synthetic"),
    fps=24.0,
    text="She speaks, looks to the left, then smiles and nods.",
    latents=rng.standard_normal((frames, *size, channels), np.float32),
    speak_audio=rng.uniform(-0.1, 0.1, samples).astype(np.float32),
    listen_audio=np.zeros(samples, np.float32),
    state=np.full(4 * (frames - 1) + 1, index % 2, np.int8),
    references=rng.standard_normal((13, *size, channels), np.float32),
    reference_kind=np.array([0] + 4 * [1] + 8 * [2], np.int32),
    reference_label=np.array([0, *range(4), *range(8)], np.int32),
    **features,
  )


def _half(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  """Positive bfloat16 noise, made of bits."""
  return (rng.integers(0, 1 << 16, shape, np.uint16) & 0x3FFF).view(bfloat16)


def read_bytes() -> int:
  """Bytes this process has read from files so far, cached or not (Linux)."""
  lines = pathlib.Path("/proc/self/io").read_text().splitlines()
  return int(dict(line.split(": ") for line in lines)["rchar"])


def resident() -> float:
  """Most memory that this process has had, MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(scale: str, folder: str, threads: int, batches: int) -> dict:
  """One process of a pod at its input: start-up, then so many batches of the rows of one host."""
  config = get_config(scale)
  config.data.path = folder
  rows = CHIPS_OF_A_HOST if scale == "17b" else config.batch_size
  task, before = BaseTask(config), resident()
  read, begin = read_bytes(), time.perf_counter()
  stages = task.stages(seed=0)
  start, start_read = time.perf_counter() - begin, read_bytes() - read
  iterator = loader.batches(
    stages,
    seed=0,
    batch_size=config.batch_size,
    process_count=config.batch_size // rows,
    threads=threads,
    buffer=BUFFER,
  )
  cpu, begin = time.process_time(), time.perf_counter()
  for _ in range(batches):  # from an empty buffer on: what is ready at the start would flatter
    batch = next(iterator)
  wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
  return {
    "start": start,
    "start_mb": start_read / 1e6,
    "batches": batches / wall,
    "clips": batches * rows / wall,
    "batch_mb": sum(x.nbytes for x in batch.values()) / rows / 1e6,
    "latents": str(batch["latents"].dtype),
    "cores": cpu / wall,
    # Up to BUFFER batches more were read than were taken: the cost of a clip is an upper bound.
    "cpu_ms": 1e3 * cpu / (batches * rows),
    "memory": resident() - before,
  }


def child(*words: object) -> dict:
  """`measure` in a process of its own."""
  command = [sys.executable, "-m", "benchmarks.input", "--child", *map(str, words)]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    sys.exit("a process of the benchmark failed; its error is above")
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--clips", type=int, default=16, help="of each synthetic 17B data set")
  parser.add_argument("--batches", type=int, default=12)
  parser.add_argument("--step-seconds", type=float, default=10.0, help="of the 17B step on a pod")
  parser.add_argument("--puppets", help="folder of encoded puppets; else noise of their shapes")
  parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # scale, folder, threads, batches
  args = parser.parse_args()
  if args.child:
    scale, folder, threads, batches = args.child
    print(json.dumps(measure(scale, folder, int(threads), int(batches))))
    return
  print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
  head = ("start s", "start MB", "batches/s", "clips/s", "MB a clip", "in batch", "cores", "CPU ms")
  print(f"{'scale':8}{'stored':10}{'threads':7}" + "".join(f"{x:>10}" for x in head), "  memory")
  found = {}
  with tempfile.TemporaryDirectory(prefix="lpm_input_") as root:
    folders, stored = {}, {}
    for scale, dtype in dict.fromkeys(case[:2] for case in CASES):
      folder = folders[scale, dtype] = pathlib.Path(root) / scale / dtype
      if scale == "puppets" and args.puppets:
        folders[scale, dtype] = folder = pathlib.Path(args.puppets)
      else:
        count, rng = args.clips if scale == "17b" else 256, np.random.default_rng(0)
        clips = (noise_clip(scale, i, rng) for i in range(count))
        records.write_records(folder / "0.array_record", clips, half=dtype == "bfloat16")
      source = records.RecordSource(folder)
      stored[scale, dtype] = sum(f.stat().st_size for f in source.files) / len(source) / 1e6
    for scale, dtype, threads in CASES:
      batches = args.batches if scale == "17b" else 10 * args.batches
      row = found[scale, dtype, threads] = child(scale, folders[scale, dtype], threads, batches)
      row["stored_mb"] = stored[scale, dtype]
      columns = "start start_mb batches clips stored_mb batch_mb cores cpu_ms".split()
      numbers = "".join(f"{row[name]:10.2f}" for name in columns)
      print(f"{scale:8}{dtype:10}{threads:7d}{numbers} {row['memory']:6.0f} MB", flush=True)
  wide, half = found["17b", "float32", 2], found["17b", "bfloat16", 2]
  print("\n17B, latents stored in bfloat16 against float32, 2 threads:")
  for name, what in (("batch_mb", "bytes to the device"), ("cpu_ms", "CPU"), ("memory", "memory")):
    print(f"  {what}: {half[name] / wide[name]:.2f} x")
  needed = CHIPS_OF_A_HOST / args.step_seconds
  print(
    f"A v5p host ({CHIPS_OF_A_HOST} chips, a clip a chip, {args.step_seconds:g} s a step) needs "
    f"{needed:.2f} clips/s: {needed * half['stored_mb']:.0f} MB/s and "
    f"{needed * half['cpu_ms'] / 1e3:.1%} of one core.\n"
    f"This machine gives {half['clips'] / needed:.1f} x that with 2 threads."
  )


if __name__ == "__main__":
  main()
