"""`lpm plan --config.search=True`: the step with other settings, memory against predicted time.

Each candidate is compiled in a process of its own, for the compiler aborts on some programs, and
leaves workdir/candidates/NAME.json: a search that is run again does only what is missing.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict
from tqdm import tqdm

from lpm_jax import media
from lpm_jax.evaluation import page
from lpm_jax.models.remat import POLICIES
from lpm_jax.plan import chips, train

GIB = 2**30
FLAGS = ((), ("async",))


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of one step.

  Attributes:
    remat: policy, by name.
    batch: global batch size.
    context: devices that share a clip's tokens; taken from fsdp.
    flags: groups of compiler options.
  """

  remat: str
  batch: int
  context: int
  flags: tuple[str, ...]

  def name(self) -> str:
    """Also that of its file."""
    return f"{self.remat}-batch{self.batch}-context{self.context}-{'+'.join(self.flags) or 'plain'}"

  def applied(self, config: ConfigDict) -> ConfigDict:
    """The config with these settings."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
      mesh = config.sharding.mesh
      held = int(mesh.get("context", 1))
      mesh.fsdp = int(mesh.fsdp) * held // self.context
      mesh.context = self.context
      config.model.transformer.remat = self.remat
      config.batch_size = self.batch
      config.flags = self.flags
    return config


def search(
  config: ConfigDict,
  workdir: str | os.PathLike,
  compute: Callable[[ConfigDict], dict] | None = None,
) -> list[dict]:
  """Tries candidates, writes search.json and prints a table, the Pareto front first.

  Args:
    config: see `train.plan`; its settings are the centre of the search.
    workdir: folder that is written and, where it has candidates of the same config, read.
    compute: report of a config; by default `train.report`.

  Returns:
    A row a candidate: settings, hbm, spare, step, seconds_per_clip, mfu, fits, front, and `failed`,
    why there are none, or "".
  """
  folder = pathlib.Path(workdir)
  media.check_writable(folder / "search.json")
  (folder / "candidates").mkdir(parents=True, exist_ok=True)
  rows = []
  found = list(candidates(config, len(chips.devices_of(config.topology))))
  for candidate in tqdm(found, desc=f"search {config.topology}", unit="candidate"):
    rows.append(_row(candidate, config, folder, compute or train.report))
  _mark_front(rows)
  rows.sort(
    key=lambda row: (not row["front"], not row["fits"], row["seconds_per_clip"] or math.inf)
  )
  page.write_whole(folder / "search.json", json.dumps(rows, indent=2))
  _print(rows)
  return rows


def candidates(config: ConfigDict, devices: int) -> Iterator[Candidate]:
  """Remat policies, batches, context degrees and flags around those of a config."""
  mesh = config.sharding.mesh
  held = int(mesh.get("context", 1))
  shared = int(mesh.fsdp) * held
  own = str(config.model.transformer.remat)
  remats = dict.fromkeys((own, *POLICIES))
  contexts = sorted({held, *(c for c in (1, 2, 4) if shared % c == 0)})
  heads = config.model.transformer.heads
  for context, remat, flags in itertools.product(contexts, remats, FLAGS):
    if heads % context:
      continue
    rows = devices // (context * int(mesh.get("tensor", 1)))  # that batches are spread over
    for batch in sorted({rows, 2 * rows, config.batch_size}):
      if batch % rows == 0 and batch % config.get("accumulate", 1) == 0:
        yield Candidate(remat, batch, context, flags)


def _row(candidate: Candidate, config: ConfigDict, folder: pathlib.Path, compute: Callable) -> dict:
  applied = candidate.applied(config)
  mark = hashlib.sha256(applied.to_json().encode()).hexdigest()
  path = folder / "candidates" / f"{candidate.name()}.json"
  if path.exists():
    known = json.loads(path.read_text(encoding="utf-8"))
    if known["config"] == mark:
      return known["row"]
  try:
    row = _numbers(compute(applied))
  except Exception as error:  # noqa: BLE001 - a candidate that fails is a row of the table
    row = dict.fromkeys(("hbm", "spare", "step", "seconds_per_clip", "mfu"))
    row |= {"fits": False, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
  row = dataclasses.asdict(candidate) | {"flags": list(candidate.flags)} | row
  page.write_whole(path, json.dumps({"config": mark, "row": row}, indent=2))
  return row


def _numbers(found: dict) -> dict:
  memory, time = found["memory"], found.get("time")
  step = time["step"] if time else None
  return {
    "hbm": memory["total"],
    "spare": memory["spare"],
    "step": step,
    "seconds_per_clip": step / found["batch_size"] if step else None,
    "mfu": time["mfu"] if time else None,
    "fits": memory["fits"],
    "failed": found["does_not_fit"],
  }


def _mark_front(rows: list[dict]):
  """Those that no other beats in both memory and time a clip."""
  able = [row for row in rows if row["fits"] and row["seconds_per_clip"]]
  for row in rows:
    row["front"] = row in able and not any(
      other["hbm"] <= row["hbm"]
      and other["seconds_per_clip"] <= row["seconds_per_clip"]
      and (other["hbm"], other["seconds_per_clip"]) != (row["hbm"], row["seconds_per_clip"])
      for other in able
    )


def _print(rows: list[dict]):
  head = f"{'remat':<26}{'batch':>6}{'context':>8}  {'flags':<18}"
  print("\nPredicted, not measured. On the Pareto front of memory and time a clip: *")
  print(f"  {head}{'GiB':>8}{'spare':>8}{'step s':>8}{'ms/clip':>9}{'MFU':>7}")
  for row in rows:
    settings = f"{row['remat']:<26}{row['batch']:>6}{row['context']:>8}  "
    settings += f"{'+'.join(row['flags']) or '-':<18}"
    mark = "*" if row["front"] else " "
    if row["hbm"] is None or row["failed"]:
      print(f"{mark} {settings}  {row['failed']}")
      continue
    numbers = f"{row['hbm'] / GIB:8.1f}{100 * row['spare']:7.1f}%"
    if row["step"]:
      numbers += f"{row['step']:8.2f}{1e3 * row['seconds_per_clip']:9.1f}{100 * row['mfu']:6.1f}%"
    print(f"{mark} {settings}{numbers}{'' if row['fits'] else '  too little to spare'}")
