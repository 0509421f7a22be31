"""Train step of a stack of blocks on a GPU, against diffusers' Wan2.1 blocks in PyTorch.

At Wan2.1's 1.3B width (30 blocks) and at the 17B width (as many blocks as fit), bf16, 32,760 video
tokens: forward, backward, AdamW on fp32 masters. Ours runs on cuDNN attention, theirs on PyTorch's
fused attention and torch.compile, by blocks. First, in fp32 and with two blocks, both must agree on
output, loss and every gradient. Every measurement is a process of its own, one after the other.
Our blocks do more: each has an audio branch. FLOPs are those of the model (two a multiply-add,
backward twice forward, nothing for recomputation), counted for each side's own blocks.
  python -m benchmarks.train_step_gpu --torch-python=PATH_OF_A_PYTHON_WITH_TORCH_AND_DIFFUSERS
  ... --tiny: the same on a CPU, in small. So far it has run in no other way: no GPU was at hand.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from lpm_jax.training.hooks import PEAK_FLOPS

FOLDER = pathlib.Path(__file__).parent
TEXT_TOKENS = 512
AUDIO_TOKENS = 4  # a latent frame
TOLERANCE = {"output": 1e-4, "loss": 1e-5, "gradients": 1e-3}


@dataclasses.dataclass(frozen=True)
class Case:
  """One stack and the work it is given.

  Args:
    width, heads, hidden, layers: of the blocks.
    grid: latent frames, and rows and columns of latents; a token has 2 x 2 of these.
    text_width: of the text features.
    remat: whether blocks are computed again in the backward pass.
    kernel: of our attention.
    dtype: of the computation.
    steps: steps that are timed, after two that are not.
  """

  width: int
  heads: int
  hidden: int
  layers: int
  grid: tuple[int, int, int] = (21, 60, 104)
  text_width: int = 4096
  remat: bool = True
  kernel: str = "cudnn"
  dtype: str = "bfloat16"
  steps: int = 10

  @property
  def tokens(self) -> int:
    """Video tokens."""
    frames, rows, columns = self.grid
    return frames * (rows // 2) * (columns // 2)

  def flops(self, *, audio: bool) -> float:
    """Of a step; `audio` counts the branch that only our blocks have."""
    tokens, width = self.tokens, self.width
    linear = tokens * width * (6 * width + 2 * self.hidden) + 2 * TEXT_TOKENS * width**2
    attended = tokens + TEXT_TOKENS
    if audio:
      heard = AUDIO_TOKENS * self.grid[0]
      linear += tokens * width**2 + 2 * heard * width**2
      attended += heard
    return 3 * self.layers * 2 * (linear + 2 * tokens * attended * width)

  def parameters(self) -> int:
    """Of a block of ours."""
    return self.width * (11 * self.width + 2 * self.hidden)

  def bytes_of_layer(self) -> float:
    """Memory that a block adds to a step, about: fp32 master, moments and gradient, bf16 copies,
    and what the backward pass keeps of its activations, in multiples of its bf16 input."""
    kept = 1 if self.remat else 30
    return 20 * self.parameters() + kept * 2 * self.tokens * self.width


def fitted(case: Case, memory: float) -> Case:
  """The case with as many blocks, an even number, as fit into 85 % of the memory."""
  work = 40 * 2 * case.tokens * max(case.width, case.hidden / 2)
  layers = int((0.85 * memory - work) / case.bytes_of_layer()) // 2 * 2
  if layers < 2:
    sys.exit(f"{memory / 2**30:.0f} GiB of GPU memory hold no two blocks of width {case.width}")
  return dataclasses.replace(case, layers=min(case.layers, layers))


def run(side: str, python: str, mode: str, case: Case, folder: pathlib.Path) -> dict:
  """One process of one side: "check" or "time"."""
  words = [mode, json.dumps(dataclasses.asdict(case)), str(folder)]
  command = {
    "JAX": [python, "-m", "benchmarks.gpu_step_jax", *words],
    "PyTorch": [python, str(FOLDER / "gpu_step_torch.py"), *words],
  }[side]
  env = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=False)
  if done.returncode:
    sys.exit(f"{side}, {mode}: failed; its error is above")
  return json.loads(done.stdout.splitlines()[-1])


def check(case: Case, pythons: dict[str, str]) -> dict:
  """Both sides on equal weights, in fp32; exits when they differ. What PyTorch says of its GPU."""
  small = dataclasses.replace(case, layers=2, grid=(3, 16, 16), remat=False, dtype="float32")
  small = dataclasses.replace(small, kernel="dense")  # cuDNN's attention knows no fp32
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    run("JAX", pythons["JAX"], "check", small, folder)
    found = run("PyTorch", pythons["PyTorch"], "check", small, folder)
  text = ", ".join(f"{name} {found[name]:.1e}" for name in TOLERANCE)
  print(f"width {case.width}: relative differences on equal weights, fp32: {text}")
  if any(found[name] > limit for name, limit in TOLERANCE.items()):
    sys.exit(f"the two are not the same (allowed: {TOLERANCE}): no speed is compared")
  return found


def compare(case: Case, pythons: dict[str, str], peak: float | None):
  """Times both sides and prints a line each."""
  with tempfile.TemporaryDirectory() as name:
    found = {
      side: run(side, python, "time", case, pathlib.Path(name)) for side, python in pythons.items()
    }
  again = "blocks recomputed" if case.remat else "all activations kept"
  print(f"\nwidth {case.width}, {case.layers} blocks, {case.tokens} tokens, {case.dtype}, {again}")
  for side, row in found.items():
    flops = case.flops(audio=side == "JAX")
    median, best = statistics.median(row["seconds"]), min(row["seconds"])
    mfu = f"{flops / median / peak / 1e12:.1%}" if peak else "no peak known"
    print(
      f"  {side:8} {row['about']:40} {1e3 * median:9.1f} ms median, {1e3 * best:9.1f} best, "
      f"{flops / median / 1e12:8.3f} TFLOP/s, MFU {mfu}",
      flush=True,
    )
  ours, theirs = (statistics.median(found[side]["seconds"]) for side in ("JAX", "PyTorch"))
  work = case.flops(audio=True) / case.flops(audio=False)
  print(
    f"  a step of ours is {theirs / ours:.2f} times as fast, with {work:.2f} times the work; "
    f"FLOP/s: {theirs / ours * work:.2f} times (goals: 1.2 times, MFU 50 %)"
  )
  if not peak:
    print("  (small, on a CPU: this checks the script, it says nothing about a GPU)")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--torch-python", default=sys.executable, help="has torch and diffusers")
  parser.add_argument("--tiny", action="store_true", help="small widths and grids, on a CPU")
  parser.add_argument("--kernel", default="", help="of our attention; cudnn, with --tiny dense")
  parser.add_argument("--remat", choices=("auto", "always", "never"), default="auto")
  parser.add_argument("--peak-tflops", type=float, help="where the GPU is not among those known")
  parser.add_argument("--steps", type=int, default=10)
  args = parser.parse_args()
  pythons = {"JAX": sys.executable, "PyTorch": args.torch_python}
  if args.tiny:
    sizes = dict(grid=(3, 16, 16), text_width=64, kernel=args.kernel or "dense", steps=args.steps)
    cases = [Case(96, 2, 256, 4, **sizes), Case(128, 2, 320, 4, **sizes)]
  else:
    sizes = dict(kernel=args.kernel or "cudnn", steps=args.steps)
    cases = [Case(1536, 12, 8960, 30, **sizes), Case(5120, 40, 13824, 40, **sizes)]
  for case in cases:
    gpu = check(case, pythons)
    if not args.tiny and not gpu["memory"]:
      sys.exit("no GPU here: `--tiny` runs on a CPU")
    peak = args.peak_tflops
    if gpu["memory"]:
      known = [flops for name, flops in PEAK_FLOPS.items() if gpu["name"].startswith(name)]
      peak = peak or (known[0] / 1e12 if known else None)
      kept = dataclasses.replace(case, remat=False)
      fits = fitted(kept, gpu["memory"]).layers >= case.layers
      again = {"auto": not fits, "always": True, "never": False}[args.remat]
      case = fitted(dataclasses.replace(case, remat=again), gpu["memory"])
    compare(case, pythons, peak)


if __name__ == "__main__":
  main()
