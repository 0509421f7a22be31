"""The search over settings, with a made-up model of a step."""

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from lpm_jax.plan import chips, search


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
  monkeypatch.setattr(chips, "devices_of", lambda topology: [None] * 8)
  c = ConfigDict()
  c.topology, c.flags, c.batch_size, c.accumulate = "v6e:2x4", (), 8, 1
  c.sharding = dict(mesh=dict(data=1, fsdp=8), rules={})
  c.model = dict(transformer=dict(remat="nothing_saveable", heads=4))
  return c


def made_up(config: ConfigDict) -> dict:
  """More clips need more memory and less time a clip; context 4 does not compile."""
  if config.sharding.mesh.context == 4:
    raise RuntimeError("no such kernel")
  memory = 10 * config.batch_size + (0 if config.flags else 5)
  time = {"step": config.batch_size + 8.0, "mfu": 0.5}
  return {
    "memory": {"total": memory, "spare": 1 - memory / 200, "fits": memory < 150},
    "time": time,
    "batch_size": config.batch_size,
    "does_not_fit": "",
  }


def test_the_front_is_what_nothing_beats_in_memory_and_time(config, tmp_path: pathlib.Path):
  rows = search.search(config, tmp_path, made_up)
  front = {(row["batch"], row["context"], row["hbm"]) for row in rows if row["front"]}
  assert front == {(8, 1, 80), (8, 2, 80), (4, 2, 40)}  # with flags; 16 clips leave too little
  assert json.loads((tmp_path / "search.json").read_text()) == rows


def test_a_candidate_that_fails_is_a_row(config, tmp_path):
  failed = [row for row in search.search(config, tmp_path, made_up) if row["failed"]]
  assert {row["context"] for row in failed} == {4}
  assert failed[0]["failed"] == "RuntimeError: no such kernel" and not failed[0]["fits"]


def test_a_search_goes_on_where_it_was(config, tmp_path):
  first = search.search(config, tmp_path, made_up)

  def never(config: ConfigDict) -> dict:
    raise AssertionError("compiled again")

  assert search.search(config, tmp_path, never) == first
  changed = config.copy_and_resolve_references()
  changed.topology = "v5p:2x2x2"
  assert all("compiled again" in row["failed"] for row in search.search(changed, tmp_path, never))


def test_candidates_share_the_devices(config):
  found = list(search.candidates(config, 8))
  assert {c.context for c in found} == {1, 2, 4}
  for one in found:
    mesh = one.applied(config).sharding.mesh
    assert mesh.fsdp * mesh.context == 8 and one.batch % mesh.fsdp == 0
  assert len({c.name() for c in found}) == len(found)
