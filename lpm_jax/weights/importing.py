"""`lpm weights import` and `lpm weights check`: published checkpoints become our weights."""

import dataclasses
import json
import pathlib

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from lpm_jax.weights import store
from lpm_jax.weights.layout import Differences, Entry, check
from lpm_jax.weights.public import KINDS, PublicModel, public_model
from lpm_jax.weights.shipped import WeightsError
from lpm_jax.weights.sources import PublicCheckpoint, tensor_hash

ADDITIONS = "lpm"  # folder beside an exported checkpoint: what only LPM has


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an import does, settled from headers alone."""

  public: PublicModel
  source: PublicCheckpoint
  layout: str
  entries: list[Entry]
  differences: Differences
  constants: dict[str, list[float]]


def plan_import(config: ConfigDict) -> Plan:
  """Compares a checkpoint with a layout and a module, by names, shapes and dtypes.

  Args:
    config: `kind`, `model`, `inputs` (see `public_model`), `source` (see `PublicCheckpoint`) and
      `layout`, "" to detect it.

  Raises:
    WeightsError: what does not fit, by file and tensor.
  """
  public = public_model(config)
  kind, module = KINDS[public.kind], public.abstract()
  source = PublicCheckpoint(config.source, rename=kind.rename)
  layout = config.layout or public.detect(source.tensors)
  entries, shapes = public.entries(layout), source.shapes()
  additions = source.path.parent / ADDITIONS
  if additions.is_dir():
    added = PublicCheckpoint(additions)
    entries = entries + [_addition(name) for name in added.tensors]
    source.tensors |= {f"{ADDITIONS}:{name}": info for name, info in added.tensors.items()}
    shapes = source.shapes()
  differences = check(entries, module, shapes, dropped=kind.dropped, where=str(source.path))
  constants = _constants(public, source.path.with_name("config.json"))
  new = {path: s for path, s in differences.new.items() if path not in constants}
  differences = dataclasses.replace(differences, new=new)
  return Plan(public, source, layout, entries, differences, constants)


def _addition(name: str) -> Entry:
  target, _, index = name.partition("@")
  return Entry(f"{ADDITIONS}:{name}", target, index=int(index) if index else None)


def _constants(public: PublicModel, path: pathlib.Path) -> dict[str, list[float]]:
  """The constants of a kind: those of the published code, or of the config beside a checkpoint."""
  constants = {name: list(values) for name, values in KINDS[public.kind].constants.items()}
  if constants and path.is_file():
    stored = json.loads(path.read_text())
    named = {"latent_mean": "latents_mean", "latent_std": "latents_std"}
    constants |= {ours: stored[theirs] for ours, theirs in named.items() if theirs in stored}
  return constants


def import_weights(config: ConfigDict, workdir: str):
  """Imports the checkpoint `config.source` into workdir/KIND and prints what is dropped and new.

  Names, shapes and dtypes are checked before anything is written. Tensors are read one by one and
  written part by part; an import that was killed continues with the part it had not finished, one
  that is whole is left as it is.

  Raises:
    WeightsError: the checkpoint does not fit (see `plan_import`), or the folder holds an import of
      another one.
  """
  plan = plan_import(config)
  folder = store.absolute(workdir) / plan.public.kind
  print(f"{plan.source.path}: {len(plan.source.tensors)} tensors, layout {plan.layout!r}")
  print(plan.differences.summary())
  begun = {"fingerprint": plan.source.fingerprint(), "layout": plan.layout}
  begun["config"] = dataclasses.asdict(plan.public.config)
  if _is_whole(folder, json.loads(json.dumps(begun))):
    print(f"{folder}: already imported")
    return
  infos = plan.source.tensors
  parts = store.plan_parts(plan.entries, {name: info.bytes for name, info in infos.items()})
  records = []
  with tqdm(total=len(infos), desc=f"import {plan.public.kind}", unit="tensor") as bar:
    for number, entries in enumerate(parts):
      records += _import_part(folder, number, entries, plan)
      bar.update(len(entries))
    dropped = []
    for name in plan.source.tensors.keys() - {entry.source for entry in plan.entries}:
      dropped.append(_describe(plan.source, name, plan.source.read(name)))
      bar.update()
  manifest = {
    "format": store.FORMAT,
    "kind": plan.public.kind,
    **begun,
    "inputs": plan.public.inputs,
    "source": str(plan.source.path),
    "parts": len(parts),
    "tensors": records,
    "dropped": sorted(dropped, key=lambda record: record["source"]),
    "new": plan.differences.new,
    "constants": plan.constants,
  }
  store.write_json(folder / store.MANIFEST, manifest)
  print(f"{folder}: {len(records)} tensors in {len(parts)} parts")


def _is_whole(folder: epath.Path, begun: dict) -> bool:
  """Whether the import is already there; marks the folder as that of this import otherwise."""
  path = folder / "import.json"
  if path.exists() and store.read_json(path) != begun:
    raise WeightsError(
      f"{folder}: holds an import of another checkpoint, layout or size: choose another workdir"
    )
  folder.mkdir(parents=True, exist_ok=True)
  store.write_json(path, begun)
  return (folder / store.MANIFEST).exists()


def _import_part(folder: epath.Path, number: int, entries: list[Entry], plan: Plan) -> list[dict]:
  path = folder / "parts" / f"{number:04d}"
  note = path.with_name(f"{path.name}.json")
  if path.exists() and note.exists():
    return store.read_json(note)
  tensors, records = {}, []
  for entry in entries:
    tensor = plan.source.read(entry.source)
    here = np.ascontiguousarray(entry.imported(tensor))
    tensors[store.key(entry)] = here
    record = _describe(plan.source, entry.source, tensor)
    record |= {"key": store.key(entry), "target": entry.target, "index": entry.index}
    records.append(record | {"here": here.shape, "part": number})
  path.parent.mkdir(parents=True, exist_ok=True)
  store.write_part(path, tensors)
  store.write_json(note, records)
  return records


def _describe(source: PublicCheckpoint, name: str, tensor: np.ndarray) -> dict:
  info = source.tensors[name]
  about = {"source": name, "file": info.file.name, "shape": info.shape, "dtype": info.dtype}
  return about | {"sha256": tensor_hash(tensor)}


def check_weights(config: ConfigDict, workdir: str):
  """Compares the import in workdir/KIND with `config.source`, tensor by tensor, bit by bit.

  Raises:
    WeightsError: how many tensors differ, and the first of them.
  """
  plan = plan_import(config)
  imported = store.ImportedWeights(store.absolute(workdir) / plan.public.kind)
  entries = {entry.source: entry for entry in plan.entries}
  records = {t["source"]: t for t in imported.manifest["tensors"]}
  wrong = [f"{name}: not imported" for name in entries.keys() - records.keys()]
  wrong += [f"{name}: not in the source" for name in records.keys() - entries.keys()]
  with tqdm(total=len(records), desc=f"check {plan.public.kind}", unit="tensor") as bar:
    for number, part in imported.parts():
      stored = imported.read_part(number)
      for t in part:
        if t["source"] in entries:
          wrong += _compare(plan.source, entries[t["source"]], t, stored[t["key"]])
        bar.update()
  for t in imported.manifest["dropped"]:
    if t["source"] not in plan.source.tensors:
      wrong.append(f"{t['source']}: dropped by the import, not in the source")
    elif tensor_hash(plan.source.read(t["source"])) != t["sha256"]:
      wrong.append(f"{t['source']}: dropped by the import, has changed since")
  if wrong:
    for line in wrong[:20]:
      logging.error("%s", line)
    raise WeightsError(f"{imported.folder}: {len(wrong)} tensors differ; {sorted(wrong)[0]}")
  print(f"{imported.folder}: {len(records)} tensors equal those of {plan.source.path}, bit for bit")


def _compare(source: PublicCheckpoint, entry: Entry, record: dict, stored: np.ndarray) -> list[str]:
  tensor = source.read(entry.source)
  where = f"{source.tensors[entry.source].file.name}: {entry.source}"
  if tensor_hash(tensor) != record["sha256"]:
    return [f"{where}: not the tensor that was imported"]
  here = entry.imported(tensor)
  if here.dtype != stored.dtype or tensor_hash(here) != tensor_hash(stored):
    return [f"{where}: stored otherwise as {record['key']}"]
  return []
