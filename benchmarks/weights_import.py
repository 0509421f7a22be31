"""Peak memory of `lpm weights import` and `export`, on a checkpoint of Wan2.1-T2V-1.3B's shapes.

Writes random bf16 tensors under the published names (2.8 GB), then runs each verb in a process of
its own: import, check, export, import of the export. The two imports must have equal bits.
  python -m benchmarks.weights_import --workdir=FOLDER_WITH_12_GB
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from configs.lpm_17b.weights import get_config
from lpm_jax.weights.exporting import write_shards
from lpm_jax.weights.public import public_model
from lpm_jax.weights.shipped import flat_state

PRESET = "configs/lpm_17b/weights.py:t2v_1b"
MEASURED = """
import resource, sys
from lpm_jax import cli
sys.argv = ["lpm"] + sys.argv[1:]
try:
  cli.main()
finally:
  print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_checkpoint(folder: pathlib.Path) -> int:
  """A checkpoint with the published names and shapes; returns the bytes of its largest tensor."""
  public, rng = public_model(get_config("t2v_1b")), np.random.default_rng(0)
  state, largest = flat_state(public.abstract()), 0

  def tensors():
    nonlocal largest
    for entry in public.entries("diffusers"):
      shape = entry.shape(state[entry.target].shape)
      tensor = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
      largest = max(largest, tensor.nbytes)
      yield entry.source, tensor

  write_shards(folder, "diffusion_pytorch_model", tensors())
  return largest


def lpm(*words: str) -> tuple[int, float]:
  """Runs `lpm WORDS`; returns the peak of its resident memory in bytes and its seconds."""
  begin = time.perf_counter()
  done = subprocess.run(
    [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False
  )
  if done.returncode:
    sys.exit(done.stdout + done.stderr)
  peak = next(line for line in done.stdout.splitlines() if line.startswith("PEAK"))
  return int(peak.split()[1]), time.perf_counter() - begin


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every tensor of an import by its place here."""
  manifest = json.loads((folder / "transformer/manifest.json").read_text())
  return {t["key"]: t["sha256"] for t in manifest["tensors"]}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  root = parser.parse_args().workdir
  source = root / "public"
  largest = write_checkpoint(source)
  total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
  print(f"{source}: {total / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
  config = f"--config={PRESET}"
  steps = {
    "import": ("import", f"--config.source={source}", f"--workdir={root / 'ours'}"),
    "check": ("check", f"--config.source={source}", f"--workdir={root / 'ours'}"),
    "export": ("export", f"--config.weights={root / 'ours'}", f"--workdir={root / 'out'}"),
    "import of the export": (
      "import",
      f"--config.source={root / 'out/transformer'}",
      f"--workdir={root / 'again'}",
    ),
  }
  for name, (verb, *flags) in steps.items():
    peak, seconds = lpm("weights", verb, config, *flags)
    print(
      f"{name:22} {seconds:6.1f} s   peak {peak / 1e9:.2f} GB, "
      f"{(peak - largest) / 1e9:.2f} GB above the largest tensor",
      flush=True,
    )
  same = hashes(root / "ours") == hashes(root / "again")
  print(f"the two imports are {'equal' if same else 'NOT equal'}, bit for bit")
  sys.exit(not same)


if __name__ == "__main__":
  main()
