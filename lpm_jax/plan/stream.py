"""`lpm plan`: what the chunk step of a stream asks of a TPU topology, without a TPU."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict
from tqdm import tqdm

from lpm_jax import media
from lpm_jax.evaluation import page
from lpm_jax.parallel import options
from lpm_jax.plan import chips, compiled, predict, timeline
from lpm_jax.plan.isolated import isolated
from lpm_jax.plan.links import LINKS
from lpm_jax.plan.schedule import Operation
from lpm_jax.plan.stages import DoesNotFit, StagePlan, plan_decoder, plan_transformers

GIB = 2**30
Stage = tuple[str, int]  # name and number of devices


def plan(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Compiles the stages, searches layouts, writes plan.json and plan.html and prints a table.

  Args:
    config: see configs/lpm_17b/plan_stream.py.
    workdir: folder that is written.

  Returns:
    What plan.json holds.

  Raises:
    ValueError: a topology that is not known, or the compiler (libtpu) is not there.
  """
  folder = pathlib.Path(workdir)
  media.check_writable(folder / "plan.json")
  chip, devices = chips.chip_of(config.topology), len(chips.devices_of(config.topology))
  chip = dataclasses.replace(chip, **config.assumed)
  plans, refused = _compile(config, chip, devices)
  memory = LINKS[config.topology.split(":")[0]].memory
  timed = {key: predict.stage_time(of, chip, memory) for key, of in plans.items()}
  times = {key: time for key, (time, _) in timed.items()}
  seconds = config.stream.causal.frames * 4 / config.frames_per_second
  found = predict.layouts(plans, times, devices, chip)
  report = {
    "topology": config.topology,
    "devices": devices,
    "hbm_gib": chip.hbm / GIB,
    "seconds_per_chunk": seconds,
    "picture": [config.height, config.width],
    "assumed": dataclasses.asdict(chip) | {"memory": memory, "clock": chips.CLOCK},
    "options": options.options_of(config),
    "stages": [
      _stage(of, *timed[key], of.schedule.estimate(chips.CLOCK, chip, memory))
      for key, of in plans.items()
    ],
    "do_not_fit": [
      {"stage": stage, "devices": count, "reason": reason}
      for (stage, count), reason in refused.items()
    ],
    "layouts": [
      {
        "layout": layout.name(),
        "fits": layout.fits,
        "hbm_gib": layout.hbm / GIB,
        "hbm_spare": 1 - layout.hbm / chip.hbm,
        "chunk_ms": layout.latency,
        "frames_per_second": 1e3 * seconds * config.frames_per_second / layout.period,
        "binds": layout.binds,
      }
      for layout in found
    ],
  }
  page.write_whole(folder / "plan.json", json.dumps(report, indent=2))
  page.write_page(folder / "plan.html", "plan.html", title=f"Stream on {config.topology}", **report)
  _print(report)
  return report


def _compile(
  config: ConfigDict, chip: chips.Chip, devices: int
) -> tuple[dict[Stage, StagePlan], dict[Stage, str]]:
  """What fits, and why the rest does not."""
  name, settings = config.topology.split(":")[0], config.to_dict()
  groups = {n: f"{name}:{shape}" for n, shape in chip.slices if n <= devices}
  plans, refused = {}, {}
  for count in tqdm(groups, desc=f"compile for {config.topology}", unit="group"):
    try:
      made = isolated(plan_transformers, settings, groups[count])
    except DoesNotFit as error:
      refused["backbone", count] = refused["refiner", count] = str(error)
      made = []
    for of in (*made, isolated(plan_decoder, settings, groups[count])):
      plans[of.stage, count] = of
  return plans, refused


def _stage(
  of: StagePlan,
  time: predict.StageTime,
  moved: tuple[timeline.Moved, ...],
  estimate: Callable[[Operation], float],
) -> dict:
  return dataclasses.asdict(dataclasses.replace(of, schedule=None)) | {
    "estimates": "cycles" if of.schedule.has_cycles() else "products",
    "milliseconds": dataclasses.asdict(time),
    "moved": [dataclasses.asdict(one) for one in moved],
    "costliest": compiled.costliest(of.schedule, estimate, 10),
  }


def _print(report: dict):
  print(f"{report['topology']}: {report['devices']} devices of {report['hbm_gib']:.1f} GiB")
  print("\nPredicted, not measured. Milliseconds of a chunk, by stage and devices:")
  parts = "".join(f"{part:>9}" for part in ("compute", "kernels", "memory", "exposed", "hidden"))
  print(f"{'stage':<10}{'devices':>8}{parts}{'GiB':>7}")
  for of in report["stages"]:
    time = of["milliseconds"]
    hbm = (of["arguments"] + of["temporaries"]) / GIB
    parts = "".join(f"{part:9.0f}" for part in time.values())
    print(f"{of['stage']:<10}{of['devices']:>8}{parts}{hbm:7.1f}  by {of['estimates']}")
  for of in report["do_not_fit"]:
    print(f"{of['stage']:<10}{of['devices']:>8}  does not fit: {of['reason']}")
  print(f"\n{'layout':<42}{'GiB':>6}{'fits':>6}{'chunk ms':>10}{'frames/s':>10}  binds")
  for row in report["layouts"]:
    numbers = f"{row['hbm_gib']:6.1f}{'yes' if row['fits'] else 'no':>6}{row['chunk_ms']:10.0f}"
    print(f"{row['layout']:<42}{numbers}{row['frames_per_second']:10.1f}  {row['binds']}")
