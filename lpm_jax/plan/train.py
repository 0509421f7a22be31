"""`lpm plan` of a training config: what its step asks of a TPU topology, without a TPU."""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from lpm_jax import media
from lpm_jax.distillation.online_task import OnlineTask
from lpm_jax.evaluation import page
from lpm_jax.models.audio import FRAMES_PER_LATENT as AUDIO_TOKENS
from lpm_jax.parallel.options import options_of
from lpm_jax.plan import chips, compiled, flops, links, online, schedule, timeline
from lpm_jax.plan.assumptions import Assumptions, assumptions
from lpm_jax.plan.isolated import isolated
from lpm_jax.plan.lowering import AbstractStep, shard_bytes, trace_train_step
from lpm_jax.plan.printing import print_report

GIB = 2**30
SPARE = 0.08  # of the memory, left for what the compiler does not count


def plan(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Compiles the train step, predicts its time, writes plan.json and plan.html, prints both.

  Args:
    config: a training config with `topology` ("v5p:8x8x4" or "v5p:4x4x8,slices=2") and, optionally,
      `assume` (see `assumptions`).
    workdir: folder that is written.

  Returns:
    What plan.json holds; see `report`.

  Raises:
    ValueError: a topology that is not known, a config that is no training config, or no compiler.
  """
  folder = pathlib.Path(workdir)
  media.check_writable(folder / "plan.json")
  found = report(config)
  page.write_whole(folder / "plan.json", json.dumps(found, indent=2))
  title = f"Training step on {config.topology}"
  page.write_page(folder / "plan.html", "plan_train.html", title=title, **found)
  print_report(found)
  return found


def report(config: ConfigDict) -> dict:
  """The plan as plain values: parameters, tokens, work, memory, collectives, predicted time.

  Made in a process of its own: the compiler aborts on some programs and goes on after others.
  """
  return isolated(_report, config.to_dict())


def _report(settings: dict) -> dict:
  config = ConfigDict(settings)
  assumed = assumptions(config.topology, config.get("assume", ""))
  devices = chips.devices_of(config.topology)
  step = trace_train_step(config, devices)
  shares = step.task.shares() if hasattr(step.task, "shares") else {}
  work = flops.count_work(step.traced.jaxpr.jaxpr, shares)
  begin = time.monotonic()
  options = options_of(config)
  made = compiled.compile_lowered(step.traced.lower(), options, config.get("codegen", True))
  found = {
    "topology": config.topology,
    "devices": len(devices),
    "chips": len(devices) // assumed.links.cores,
    "mesh": {axis: size for axis, size in step.mesh.shape.items() if size > 1},
    "batch_size": config.batch_size,
    "accumulate": config.get("accumulate", 1),
    "remat": str(config.model.transformer.get("remat", "none")),
    "compiler_options": options,
    "compile_seconds": time.monotonic() - begin,
    "assumed": dataclasses.asdict(assumed),
    "parameters": _parameters(step),
    "tokens": _tokens(config, step),
    "memory": _memory(step, made, assumed),
    "work": _work(step, work, len(devices)),
    "shares": shares,
    "does_not_fit": made.refused,
  }
  if not made.refused:
    read = schedule.read_schedule(made.text, shares)
    machine = _machine(step, work, assumed, len(devices), read)
    played = timeline.run(read, machine)
    found["time"] = _time(played, found["work"], len(devices), assumed)
    found["time"]["estimates"] = "cycles" if read.has_cycles() else "products"
    found["moved"] = [dataclasses.asdict(one) for one in played.moved]
    found["kernels"] = _kernels(work, assumed)
    found["costliest"] = compiled.costliest(read, machine.estimate, 12)
  return found


def _parameters(step: AbstractStep) -> dict:
  leaves = jax.tree.leaves(step.state.params)
  return {
    "count": sum(math.prod(leaf.shape) for leaf in leaves),
    "bytes": sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves),
  }


def _tokens(config: ConfigDict, step: AbstractStep) -> dict:
  _, frames, rows, columns, _ = step.batch["latents"].shape
  slots = step.batch["references"].shape[1]
  grid = rows * columns // math.prod(config.model.transformer.get("patch", (2, 2)))
  return {
    "video_frames": 4 * (frames - 1) + 1,
    "latent_frames": frames,
    "picture": [8 * rows, 8 * columns],
    "video": frames * grid,
    "references": slots * grid,
    "reference_slots": slots,
  }


def _memory(step: AbstractStep, made: compiled.Made, assumed: Assumptions) -> dict:
  """Bytes of a device by kind; what the host keeps apart."""
  kinds = {
    "parameters": step.state.params,
    "average": step.state.ema,
    "moments": step.state.opt_state,
    "other variables": step.state.rest,
    "batch": step.batch,
  }
  device = {name: shard_bytes(tree, on_host=False) for name, tree in kinds.items()}
  host = {name: shard_bytes(tree, on_host=True) for name, tree in kinds.items()}
  found = {"device": device, "host": {k: v for k, v in host.items() if v}, "hbm": assumed.chip.hbm}
  if made.memory is None:
    total = made.needed
    if total is not None and made.needed_for == "temporaries":
      device["temporaries"] = total
      total = sum(device.values())
    return found | {"total": total, "spare": _spare(total, assumed), "fits": False}
  total = made.memory.total
  device["temporaries and results"] = total - made.memory.code - sum(device.values())
  if made.memory.code:
    device["program"] = made.memory.code
  if made.memory.host:
    found["host"]["temporaries"] = made.memory.host
  spare = _spare(total, assumed)
  return found | {"total": total, "spare": spare, "fits": spare >= SPARE}


def _spare(total: int | None, assumed: Assumptions) -> float | None:
  return None if total is None else 1 - total / assumed.chip.hbm


def _work(step: AbstractStep, work: flops.Work, devices: int) -> dict:
  """Operations of a step, all devices together."""
  of_kernels = devices * sum(k.calls * k.flops for k in work.kernels)
  size, frames, rows, columns, _ = step.batch["latents"].shape
  config, slots = step.task.model_config, step.batch["references"].shape[1]
  grid = rows * columns // math.prod(config.transformer.patch)
  if isinstance(step.task, OnlineTask):
    convention, clip = online.CONVENTION, online.clip_flops(step.task, grid=grid, slots=slots)
  else:
    sizes = dict(frames=frames, grid=grid, slots=slots, text=config.text.length)
    clip = 3 * flops.forward_flops(config.transformer, audio=AUDIO_TOKENS * frames, **sizes)
    convention = flops.CONVENTION
  return {
    "convention": convention,
    "model": size * clip,
    "hardware": work.products + of_kernels,
    "kernels": of_kernels,
    "recompute": (work.products + of_kernels) / (size * clip),
  }


def kernel_clock(work: flops.Work, assumed: Assumptions) -> Callable[[schedule.Operation], float]:
  """Seconds of a kernel's call in the compiled program: its operations at a share of the peak.

  Raises ValueError for a call that no kernel of the traced step explains.
  """
  peak = assumed.chip.flops * assumed.chip.kernel_share
  times = {(call.operands, call.results): call.flops / peak for call in work.kernels}

  def seconds(op: schedule.Operation) -> float:
    key = op.read, tuple(array.dims for array in op.arrays)
    if key not in times:
      raise ValueError(f"kernel {op.name}: no kernel of the traced step has its shapes: {key}")
    return times[key]

  return seconds


def _machine(
  step: AbstractStep,
  work: flops.Work,
  assumed: Assumptions,
  devices: int,
  read: schedule.Schedule,
) -> timeline.Machine:
  flat = list(step.mesh.devices.flat)

  def group(places: tuple[tuple[int, ...], ...]) -> tuple[links.Group, str]:
    places = places or (tuple(range(devices)),)
    reached = [links.group_of([flat[p] for p in g], flat, assumed.links) for g in places[:64]]
    widest = max(reached, key=lambda g: g.slices)
    return widest, links.axis_of(step.mesh, places)

  estimate = read.estimate(assumed.clock, assumed.chip, assumed.links.memory)
  return timeline.Machine(estimate, assumed.links, kernel_clock(work, assumed), group)


def _time(played: timeline.Timeline, work: dict, devices: int, assumed: Assumptions) -> dict:
  """Predicted seconds of a step in three parts, and shares of the peak."""
  peak = devices * assumed.chip.flops
  alike = played.cycles + work["kernels"] / (0.6 * peak)
  return {
    "parts": {
      "compute": played.cycles + played.kernels,
      "exposed communication": played.exposed,
      "memory": played.memory,
    },
    "cycles": played.cycles,
    "kernels": played.kernels,
    "step": played.total(),
    "mfu": work["model"] / (peak * played.total()),
    "hfu": work["hardware"] / (peak * played.total()),
    "peak_per_chip": assumed.peak(),
    "binds": _binds(played),
    "without_communication_kernels_at_60_percent": {
      "step": alike,
      "mfu": work["model"] / (peak * alike),
    },
  }


def _binds(played: timeline.Timeline) -> str:
  parts = {
    "matrix products and elementwise work": played.cycles,
    "attention kernels": played.kernels,
    "HBM bandwidth": played.memory,
  }
  for one in played.moved:
    name = f"{one.kind} over {one.axis or 'the host link'} ({one.network})"
    parts[name] = parts.get(name, 0.0) + one.exposed
  return max(parts, key=parts.get)


def _kernels(work: flops.Work, assumed: Assumptions) -> list[dict]:
  peak = assumed.chip.flops * assumed.chip.kernel_share
  return [
    {
      "name": call.name,
      "results": [list(shape) for shape in call.results],
      "flops": call.flops,
      "calls": call.calls,
      "share": assumed.chip.kernel_share,
      "source": assumed.kernel_source,
      "seconds": call.calls * call.flops / peak,
    }
    for call in work.kernels
  ]
