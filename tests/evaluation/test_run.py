"""`lpm evaluate` end to end on systems that need no training, and its errors."""

import dataclasses
import json

import pytest
from flax import nnx

from configs.eval.puppets import get_config
from data_pipelines.puppets.character import ALL_STYLES, HIDDEN
from lpm_jax.evaluation import run, suite
from lpm_jax.evaluation.probe import Probe, ProbeConfig
from lpm_jax.weights import shipped


@pytest.fixture
def config(tmp_path, clips, monkeypatch):
  probe = ProbeConfig(tuple(HIDDEN), ALL_STYLES, (8, 8, 8), 16)
  shipped.save_module(
    tmp_path / "weights" / "probe.safetensors",
    Probe(probe, rngs=nnx.Rngs(0)),
    config=dataclasses.asdict(probe),
  )
  monkeypatch.setattr(suite, "build_suites", lambda **_: {"heldout": clips[:2]})
  c = get_config("quick")
  c.systems = ("render", "still")
  c.probe_weights = str(tmp_path / "weights")
  c.probe_characters = 1
  return c


def test_evaluation_leaves_whole_json_and_report(tmp_path, config):
  workdir = tmp_path / "evaluation"
  results = run.evaluate(config, str(workdir))
  assert sorted(p.name for p in workdir.iterdir()) == ["config.json", "report.html", "results.json"]

  def no_constants(name: str):
    raise AssertionError(f"{name} is not JSON")

  text = (workdir / "results.json").read_text()
  assert json.loads(text, parse_constant=no_constants) == json.loads(json.dumps(results))
  assert set(results["systems"]) == {"render", "still"} and set(results["probe"]) == set(ALL_STYLES)
  assert results["systems"]["still"]["heldout"]["freeze_ratio"] == 1


def test_unknown_system_is_named_before_anything_is_drawn(tmp_path, config):
  config.systems = ("render", "oracle")
  with pytest.raises(ValueError, match="oracle"):
    run.evaluate(config, str(tmp_path / "evaluation"))


def test_missing_weights_are_named(tmp_path, config):
  config.probe_weights = str(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="nowhere/probe.safetensors"):
    run.evaluate(config, str(tmp_path / "evaluation"))


def test_preset_is_checked():
  assert get_config("quick").suites.heldout < get_config().suites.heldout
  with pytest.raises(ValueError, match="thorough"):
    get_config("thorough")
