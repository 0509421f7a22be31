"""A plan of a train step as lines of text."""

GIB = 2**30


def print_report(found: dict):
  """Prints what matters of `train.report`."""
  print("\n".join(lines(found)))


def lines(found: dict) -> list[str]:
  """The plan, a line each."""
  tokens, memory = found["tokens"], found["memory"]
  mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
  rows, columns = tokens["picture"]
  out = [
    f"{found['topology']}: {found['chips']} chips, {found['devices']} devices as {mesh}",
    f"{found['parameters']['count'] / 1e9:.3f}B parameters; batch {found['batch_size']} in "
    f"{found['accumulate']} parts, remat {found['remat']}",
    f"a clip: {tokens['video_frames']} frames of {columns}x{rows}, {tokens['video']:,} tokens, and "
    f"{tokens['reference_slots']} references, {tokens['references']:,}",
    "",
    "bytes of a device, GiB (the compiler's):",
  ]
  out += [f"  {name:<22}{size / GIB:8.2f}" for name, size in memory["device"].items()]
  host = {f"{name}, on the host": size for name, size in memory["host"].items()}
  out += [f"  {name:<22}{size / GIB:8.2f}" for name, size in host.items()]
  out.append(fit(memory))
  if found["does_not_fit"]:
    return [*out, f"  the compiler: {found['does_not_fit']}"]
  work = found["work"]
  out += [
    "",
    f"model {work['model'] / 1e15:,.1f} PFLOP a step ({work['convention']})",
    f"hardware {work['hardware'] / 1e15:,.1f} PFLOP, {work['recompute']:.2f} x the model's; "
    f"{work['kernels'] / 1e15:,.1f} in kernels",
  ]
  return out + _time(found) + _moved(found) + _kernels(found) + _costliest(found)


def fit(memory: dict) -> str:
  """Whether it fits, as one line."""
  if memory["total"] is None:
    return f"  does not fit {memory['hbm'] / GIB:.1f} GiB"
  word = "fits" if memory["fits"] else "does not fit with 8 % to spare"
  return (
    f"  {'all':<22}{memory['total'] / GIB:8.2f} of {memory['hbm'] / GIB:.1f}: {word}, "
    f"{100 * memory['spare']:.1f} % spare"
  )


def _time(found: dict) -> list[str]:
  time, alike = found["time"], found["time"]["without_communication_kernels_at_60_percent"]
  out = ["", "PREDICTED seconds of a step, not measured (docs/plan.md):"]
  if time["estimates"] == "products":
    out.append("  (without machine code: by operations and bytes, at shares that are assumed)")
  out += [f"  {name:<22}{seconds:8.2f}" for name, seconds in time["parts"].items()]
  return [
    *out,
    f"  {'step':<22}{time['step']:8.2f}; of compute, kernels {time['kernels']:.2f}",
    f"  MFU {100 * time['mfu']:.1f} % of {time['peak_per_chip'] / 1e12:.0f} TFLOP/s a chip; "
    f"with recompute {100 * time['hfu']:.1f} %; binds: {time['binds']}",
    f"  communication ignored, kernels at 60 %: {alike['step']:.2f} s, "
    f"MFU {100 * alike['mfu']:.1f} %",
  ]


def _moved(found: dict) -> list[str]:
  head = f"{'collective':<20}{'axis':<16}{'network':<8}{'group':>6}{'count':>8}{'async':>8}"
  out = ["", head + f"{'GiB':>9}{'seconds':>9}{'exposed':>9}"]
  for one in sorted(found["moved"], key=lambda m: -m["exposed"]):
    out.append(
      f"{one['kind']:<20}{one['axis'] or '-':<16}{one['network']:<8}{one['group']:>6}"
      f"{one['count']:>8.0f}{one['asynchronous']:>8.0f}{one['bytes'] / GIB:9.2f}"
      f"{one['seconds']:9.3f}{one['exposed']:9.3f}"
    )
  return out


def _kernels(found: dict) -> list[str]:
  if not found["kernels"]:
    return []
  out = ["", f"{'kernel':<32}{'calls':>7}{'TFLOP a call':>14}{'share':>7}{'seconds':>9}"]
  for one in found["kernels"]:
    out.append(
      f"{one['name'][:31]:<32}{one['calls']:>7.0f}{one['flops'] / 1e12:14.3f}{one['share']:7.2f}"
      f"{one['seconds']:9.2f}"
    )
  return [*out, f"  share of the peak: {found['kernels'][0]['source']}"]


def _costliest(found: dict) -> list[str]:
  out = ["", "operations with the most estimated seconds:"]
  return out + [f"  {one['seconds']:7.3f}  {one['operation']}" for one in found["costliest"]]
