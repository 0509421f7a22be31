"""The table of planned train steps: compiles what is missing, prints Markdown.

  JAX_PLATFORMS=cpu python -m benchmarks.plan_table --workdir=plans [--cases=480p:v5p_512,...]
  JAX_PLATFORMS=cpu python -m benchmarks.plan_table --workdir=plans --cases=online

A case is a size of Base or a stage of Online ("on_policy:v6e_256"; "online" are all of them) and a
preset of its config; each leaves WORKDIR/CASE/plan.json and plan.html, which are read again unless
they are removed. Half a minute a case of Base, some minutes one of Online; with `--codegen` some
ten, for the compiler's estimates of cycles. Nothing in the table is measured.
"""

import argparse
import importlib
import json
import pathlib
import sys

from ml_collections import ConfigDict

from configs.lpm_17b import online_480p
from lpm_jax.plan import train

PRESETS = ("v5p_512", "v5p_1024", "v6e_256", "tpu7x_128", "v5p_2x256")
CASES = tuple(f"{res}:{preset}" for res in ("480p", "720p") for preset in PRESETS)
ONLINE = tuple(
  f"{stage}:{preset}" for preset in ("v5p_512", "v6e_256") for stage in online_480p.STAGES
)
GIB = 2**30


def found(case: str, workdir: pathlib.Path, codegen: bool) -> dict:
  """The plan of a case, made or read."""
  folder = workdir / case.replace(":", "_")
  path = folder / "plan.json"
  if path.exists():
    return json.loads(path.read_text(encoding="utf-8"))
  config = config_of(*case.split(":"))
  config.codegen = codegen
  folder.mkdir(parents=True, exist_ok=True)
  return train.plan(config, folder)


def config_of(name: str, preset: str) -> ConfigDict:
  """The config of a size of Base, or of a stage of Online at 480p, on a pod."""
  if name in online_480p.STAGES:
    return online_480p.get_config(f"{name},{preset}")
  return importlib.import_module(f"configs.lpm_17b.base_{name}").get_config(preset)


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
  cases = ONLINE if given.cases == "online" else given.cases.split(",")
  rows = [(case, found(case, given.workdir, given.codegen)) for case in cases]
  head = "| | topology | mesh | clips | GiB a device | spare | step, s (compute + exposed + memory)"
  print(f"\n{head} | MFU | as the neighbour | binds |", f"|{'---|' * 10}", sep="\n")
  for case, plan in rows:
    print(row(case, plan))


if __name__ == "__main__":
  sys.exit(main())
