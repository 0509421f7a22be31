"""From folders of candidates to folders of pairs: the judge's choice, record by record."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.experimental.multihost_utils import sync_global_devices
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.clip import Candidates, ClipError, Preference
from data_pipelines.records import RecordSource, write_records
from lpm_jax import media
from lpm_jax.distillation.shards import check_folder, read_settings, write_settings
from lpm_jax.preference import candidates, judge
from lpm_jax.preference.judge import Pair

SETTINGS_FILE = "pairs.json"


@dataclasses.dataclass
class Count:
  """What came of the clips: how many there were, without a winner, pairs, and won dimensions."""

  clips: int = 0
  undecided: int = 0
  pairs: int = 0
  better: Counter[str] = dataclasses.field(default_factory=Counter)

  def add(self, pairs: Sequence[Pair]):
    """Another clip and its pairs."""
    self.clips += 1
    self.undecided += not pairs
    self.pairs += len(pairs)
    self.better.update(name for pair in pairs for name in pair.better)

  def join(self, other: "Count"):
    """Those of another shard."""
    self.clips += other.clips
    self.undecided += other.undecided
    self.pairs += other.pairs
    self.better.update(other.better)

  def __str__(self) -> str:
    won = ", ".join(f"{name} {count}" for name, count in self.better.most_common())
    return (
      f"{self.pairs} pairs of {self.clips - self.undecided} of {self.clips} clips; "
      f"better in: {won or 'nothing'}"
    )


def made_hash(folder: str | os.PathLike) -> str:
  """Names the candidates of a folder: a hash of how they were made."""
  settings = read_settings(folder, candidates.SETTINGS_FILE)
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def write_pairs(config: ConfigDict, workdir: str | os.PathLike) -> Count:
  """`lpm prefer` of the task "pairs": records of `Preference`, at most `config.most` a clip.

  Every shard of candidates gives one of the same name, where there are pairs in it, and a
  .count.json; pairs.json says how all were made. Process p of n writes the shards p, p + n, ...,
  and those that are there stay. Prints and returns what came of this process's clips.

  Args:
    config: `data.path`, a folder of candidates; `judgements`, files that the page saved, separated
      by commas: people judge, and clips that nobody saw are left out; where there are none,
      measurements do, with `margins` by dimension.
    workdir: folder that is written.

  Raises ValueError for settings and files that make no sense, and for a folder that was made with
  others; ClipError for records that are no candidates, or not measured where measurements judge.
  """
  source, folder = pathlib.Path(config.data.path), pathlib.Path(workdir)
  made, margins = made_hash(source), dict(config.margins)
  if config.most < 1:
    raise ValueError(f"most: found {config.most}, expected at least 1")
  files = [path for path in config.judgements.split(",") if path]
  said = [one for path in files for one in judge.read_judgements(path, made)]
  if not files:
    judge.check_margins(margins)
  chosen = judge.judged_pairs(said) if files else None
  made_with = {
    "candidates": made,
    "most": config.most,
    "margins": {} if files else margins,
    "judgements": [
      hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16] for path in files
    ],
  }
  check_folder(folder, SETTINGS_FILE, made_with)
  shards = sorted(source.glob("*.array_record"))
  if not shards:
    raise FileNotFoundError(f"{source}: no *.array_record file here")
  write_settings(folder, SETTINGS_FILE, made_with)
  mine = shards[jax.process_index() :: jax.process_count()]
  total = Count()
  for shard in tqdm(mine, desc="pairs", unit="shard"):
    if not _count_file(folder / shard.name).exists():
      _write_shard(shard, folder / shard.name, chosen, margins, config.most)
    total.join(_read_count(folder / shard.name))
  if jax.process_count() > 1:  # the first to leave would take the coordinator along
    sync_global_devices("pairs")
  print(f"{folder}: {total}")
  return total


def _write_shard(
  shard: pathlib.Path,
  target: pathlib.Path,
  chosen: Mapping[str, list[Pair]] | None,
  margins: Mapping[str, float],
  most: int,
):
  """The pairs of a shard, then its count: a shard with a count is whole."""
  records, count = RecordSource(shard), Count()

  def preferences() -> Iterator[Preference]:
    for i in range(len(records)):
      clip = records[i]
      pairs = _pairs_of(clip, chosen, margins)[:most]
      count.add(pairs)
      for pair in pairs:
        who = "measurements" if chosen is None else "people"
        yield Preference.of(clip, pair.winner, pair.loser, list(pair.better), who)

  found = preferences()
  first = next(found, None)
  if first is not None:
    write_records(target, _chain(first, found))
  with media.written_whole(_count_file(target)) as temporary:
    temporary.write_text(json.dumps(vars(count)) + "\n")


def _chain(first: Preference, rest: Iterator[Preference]) -> Iterator[Preference]:
  yield first
  yield from rest


def _pairs_of(
  clip: Candidates, chosen: Mapping[str, list[Pair]] | None, margins: Mapping[str, float]
) -> list[Pair]:
  where = f"clip {clip.clip_id!r} in {clip.file}"
  if not isinstance(clip, Candidates):
    raise ClipError(f"{where}: candidates: missing: make them with `lpm prefer`")
  if chosen is None:
    if not clip.measured:
      raise ClipError(f"{where}: measured: found nothing, expected measurements or judgements")
    return judge.measured_pairs(clip.measured, margins)
  pairs, count = chosen.get(clip.clip_id, []), len(clip.candidates)
  for pair in pairs:
    if max(pair.winner, pair.loser) >= count:
      raise ClipError(
        f"{where}: judgements: found places {pair.winner} and {pair.loser}, of {count} candidates"
      )
  return pairs


def _count_file(records: pathlib.Path) -> pathlib.Path:
  return records.with_suffix(".count.json")


def _read_count(records: pathlib.Path) -> Count:
  values = json.loads(_count_file(records).read_text())
  return Count(**{**values, "better": Counter(values["better"])})
