"""The table of planned train steps: compiles what is missing, prints Markdown.

  JAX_PLATFORMS=cpu python -m benchmarks.plan_table --workdir=plans [--cases=480p:v5p_512,...]

A case is a config and a preset of it; each leaves WORKDIR/CASE/plan.json and plan.html, which are
read again unless they are removed. Half a minute a case; with `--codegen` some ten, for the
compiler's estimates of cycles. Nothing in the table is measured.
"""

import argparse
import importlib
import json
import pathlib
import sys

from lpm_jax.plan import train

PRESETS = ("v5p_512", "v5p_1024", "v6e_256", "tpu7x_128", "v5p_2x256")
CASES = tuple(f"{res}:{preset}" for res in ("480p", "720p") for preset in PRESETS)
GIB = 2**30


def found(case: str, workdir: pathlib.Path, codegen: bool) -> dict:
  """The plan of a case, made or read."""
  folder = workdir / case.replace(":", "_")
  path = folder / "plan.json"
  if path.exists():
    return json.loads(path.read_text(encoding="utf-8"))
  resolution, _, preset = case.partition(":")
  config = importlib.import_module(f"configs.lpm_17b.base_{resolution}").get_config(preset)
  config.codegen = codegen
  folder.mkdir(parents=True, exist_ok=True)
  return train.plan(config, folder)


def row(case: str, plan: dict) -> str:
  """A line of Markdown."""
  memory, mesh = plan["memory"], " x ".join(f"{k} {v}" for k, v in plan["mesh"].items())
  total, spare = memory["total"] or 0, memory["spare"] or 0.0
  left = f"{total / GIB:.1f} of {memory['hbm'] / GIB:.1f} | {100 * spare:.0f} %"
  head = (
    f"| {case.partition(':')[0]} | {plan['topology']} | {mesh} | {plan['batch_size']} | {left} |"
  )
  if "time" not in plan:
    return f"{head} | | | | {plan['does_not_fit']} |"
  time, parts = plan["time"], plan["time"]["parts"]
  alike = time["without_communication_kernels_at_60_percent"]["mfu"]
  seconds = f"{time['step']:.1f} ({' + '.join(f'{s:.1f}' for s in parts.values())})"
  return f"{head} {seconds} | {100 * time['mfu']:.1f} % | {100 * alike:.1f} % | {time['binds']} |"


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--cases", default=",".join(CASES))
  parser.add_argument("--codegen", action="store_true")
  given = parser.parse_args()
  rows = [(case, found(case, given.workdir, given.codegen)) for case in given.cases.split(",")]
  head = "| | topology | mesh | clips | GiB a device | spare | step, s (compute + exposed + memory)"
  print(f"\n{head} | MFU | as the neighbour | binds |", f"|{'---|' * 10}", sep="\n")
  for case, plan in rows:
    print(row(case, plan))


if __name__ == "__main__":
  sys.exit(main())
