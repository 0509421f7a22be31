"""Training loop on a toy task: it learns, resumes, stops and refuses as promised."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lpm_jax.training import guard, hooks, loop
from lpm_jax.training.checkpoints import CheckpointError
from lpm_jax.training.step import CompiledStep
from tests.children import ROOT, with_devices
from tests.training.child import result_of
from tests.training.toy import toy_config


def rows_of(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def start(workdir: pathlib.Path, changes: dict, devices: int = 1) -> subprocess.Popen:
  words = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
  return subprocess.Popen(
    [sys.executable, "-m", "tests.training.child", workdir, *words],
    cwd=ROOT,
    env=with_devices(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(child: subprocess.Popen):
  try:
    output, _ = child.communicate(timeout=900)
  finally:
    child.kill()
  assert child.returncode == 0, output


def test_loss_falls_and_weights_are_exported(tmp_path: pathlib.Path):
  loop.train(toy_config(steps=120), str(tmp_path))
  rows = rows_of(tmp_path)
  assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
  assert rows[-1]["clips_per_second"] > 0 and 0 < rows[-1]["mfu"] < 1
  assert (tmp_path / "weights" / "toy.safetensors").is_file()
  assert list(tmp_path.glob("events.out.tfevents.*"))


def test_accumulated_gradients_equal_full_batch(tmp_path: pathlib.Path):
  whole = loop.train(toy_config(noise=0.0, steps=5), str(tmp_path / "whole"))
  parts = loop.train(toy_config(noise=0.0, steps=5, accumulate=4), str(tmp_path / "parts"))
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_resume_after_kill_is_bit_equal(tmp_path: pathlib.Path):
  changes = {"steps": 160, "checkpoint__every": 20}
  child = start(tmp_path / "killed", changes)
  deadline = time.monotonic() + 900
  while not (tmp_path / "killed" / "checkpoints" / "40").exists():
    assert child.poll() is None, child.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.005)
  child.send_signal(signal.SIGKILL)
  child.communicate()
  assert not (tmp_path / "killed" / "checkpoints" / "160").exists()
  child = start(tmp_path / "killed", changes)
  whole = result_of(toy_config(**changes), str(tmp_path / "whole"))
  finish(child)
  resumed = np.load(f"{tmp_path}/killed.npz")
  assert set(whole) == set(resumed) and ".ema['up'].value" in whole
  for name in whole:
    np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


def test_eight_devices_equal_one(tmp_path: pathlib.Path):
  changes = {"steps": 20, "evaluation__log_every": 1, "accumulate": 2}
  sharded = {
    "sharding__mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    "sharding__rules": {"embed": "fsdp", "mlp": "tensor"},
  }
  child = start(tmp_path / "eight", changes | sharded, devices=8)
  loop.train(toy_config(**changes), str(tmp_path / "one"))
  finish(child)
  losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("one", "eight")]
  assert len(losses[0]) == 20
  np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: pathlib.Path):
  with pytest.raises(
    guard.NotFiniteError, match="step 24: loss is nan; newest checkpoint: step 20"
  ):
    loop.train(toy_config(poison=24), str(tmp_path))
  steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
  assert steps == [10, 20]
  assert not (tmp_path / "weights").exists()
  # Continues once the cause is gone.
  assert int(loop.train(toy_config(), str(tmp_path)).step) == 30


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: pathlib.Path):
  whole = loop.train(toy_config(), str(tmp_path))
  newest = tmp_path / "checkpoints" / "30"
  for path in newest.glob("state/**/d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  again = loop.train(toy_config(), str(tmp_path))
  assert [path.name.split("-")[0] for path in (tmp_path / "damaged").iterdir()] == ["30"]
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_checkpoint_of_another_model_is_refused(tmp_path: pathlib.Path):
  loop.train(toy_config(steps=2), str(tmp_path))
  config = toy_config(steps=4)
  checkpoints = loop.Checkpoints(tmp_path, config.to_json(), keep=1)
  state = loop.prepare(config).state
  del state.params["bias"]
  with pytest.raises(CheckpointError, match="another model.*bias.*found.*16"):
    checkpoints.restore(state)
  checkpoints.close()


def test_unwritable_workdir_is_refused_before_any_work(tmp_path: pathlib.Path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CheckpointError, match="workdir .*file.* cannot be written"):
    loop.train(toy_config(task="no.such.Task"), str(tmp_path / "file" / "run"))


def test_unknown_task_is_named():
  with pytest.raises(ValueError, match="task: found 'bass', expected one of .*base"):
    loop.make_task(toy_config(task="bass"))


def test_max_minutes_stops_with_a_checkpoint_and_no_export(tmp_path: pathlib.Path):
  state = loop.train(toy_config(max_minutes=1e-9), str(tmp_path))
  assert int(state.step) == 1
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
  assert not (tmp_path / "weights").exists()


def test_each_batch_shape_is_compiled_once():
  compiled = CompiledStep(lambda state, batch: (state + (batch["x"] @ batch["x"].T).sum(), {}))
  state, flops = np.float32(0), []
  for size in (2, 4, 2):
    batch = {"x": np.ones((size, 3), np.float32)}
    flops.append((compiled.prepare(state, batch), compiled.flops))
    state, _ = compiled(state, batch)
  assert flops == [(True, 2 * 3 * 4), (True, 2 * 3 * 16), (False, 2 * 3 * 4)]
  assert float(state) == 3 * (4 + 16 + 4)


def test_flops_of_a_scan_count_every_turn():
  def repeated(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=5)[0]

  jaxpr = jax.make_jaxpr(repeated)(np.ones((4, 4), np.float32))
  assert hooks.jaxpr_flops(jaxpr.jaxpr) == 5 * 2 * 4**3
