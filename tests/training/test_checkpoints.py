"""Checkpoints cut short by a kill, and the tier on local disks."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from lpm_jax.training import loop
from lpm_jax.training.local_tier import LocalTier
from tests.training.job import ROOT
from tests.training.toy import toy_config

SIZES = (np.arange(6.0, dtype=np.float32), np.ones((3, 4), np.float32))


def equal(a: object, b: object) -> bool:
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def test_whatever_moment_a_kill_hits_a_whole_checkpoint_is_chosen(tmp_path: pathlib.Path):
  """The files as they are at every operation on them while step 20 is written."""
  config = toy_config()
  state = loop.prepare(config).state
  workdir, copies = tmp_path / "run", tmp_path / "copies"
  first = loop.Checkpoints(workdir, config.to_json(), keep=3)
  first.save(10, state, {"at": 10})
  first.wait()
  lock, watched = threading.Lock(), [True]

  def copy(event: str, args: tuple):
    inside = args and isinstance(args[0], str | os.PathLike) and str(workdir) in os.fspath(args[0])
    if not (watched[0] and inside and event in ("open", "os.mkdir", "os.rename", "os.remove")):
      return
    if not lock.acquire(blocking=False):  # the copy's own operations are seen here too
      return
    target = copies / f"{len(os.listdir(copies))}"
    try:
      shutil.copytree(workdir, target)
    except OSError:  # another thread has moved on: no moment of the disk
      shutil.rmtree(target)
    finally:
      lock.release()

  copies.mkdir()
  sys.addaudithook(copy)
  second = jax.tree.map(lambda x: x + 1, state)
  first.save(20, second, {"at": 20})
  first.wait()
  watched[0] = False
  first.close()
  found = []
  for folder in sorted(copies.iterdir(), key=lambda path: int(path.name)):
    checkpoints = loop.Checkpoints(folder, config.to_json(), keep=3)
    restored = checkpoints.restore(state)
    checkpoints.close()
    found.append(restored.data["at"])
    assert equal(restored.state, second if found[-1] == 20 else state)
    assert not (folder / "damaged").exists()
  assert len(found) > 5 and found[0] == 10


KILLED = """
import os, signal, sys
import jax
from lpm_jax.training import loop
from tests.training.toy import toy_config
workdir, moment = sys.argv[1], int(sys.argv[2])
config = toy_config()
state = loop.prepare(config).state
checkpoints = loop.Checkpoints(workdir, config.to_json(), keep=3)
checkpoints.save(10, state, {"at": 10})
checkpoints.wait()
seen = []
def kill(event, args):
  if event in ("open", "os.mkdir", "os.rename") and args and workdir in str(args[0]):
    seen.append(event)
    if len(seen) == moment:
      os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
checkpoints.save(20, jax.tree.map(lambda x: x + 1, state), {"at": 20})
checkpoints.wait()
"""


@pytest.mark.parametrize("moment", [2, 6])
def test_sigkill_while_writing_leaves_the_checkpoint_before(tmp_path: pathlib.Path, moment: int):
  child = subprocess.run(
    [sys.executable, "-c", KILLED, str(tmp_path), str(moment)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    timeout=300,
  )
  assert child.returncode == -signal.SIGKILL
  assert len(list((tmp_path / "checkpoints").iterdir())) > 1 or moment == 2  # some of step 20
  config = toy_config()
  checkpoints = loop.Checkpoints(tmp_path, config.to_json(), keep=3)
  assert checkpoints.restore(loop.prepare(config).state).data == {"at": 10}
  checkpoints.close()


def test_the_newer_of_both_tiers_is_chosen_and_the_run_is_bit_equal(tmp_path: pathlib.Path):
  local = {"folder": str(tmp_path / "disk"), "every": 4, "keep": 2}
  whole = loop.train(toy_config(), str(tmp_path / "whole"))
  with pytest.raises(ValueError, match="step 19: loss is nan"):
    loop.train(toy_config(poison=19, checkpoint__local=local), str(tmp_path / "run"))
  assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]
  tier = LocalTier(local["folder"], str(tmp_path / "run"))
  assert tier.steps() == [12, 16]
  checkpoints = loop.Checkpoints(tmp_path / "run", "{}", keep=3, local=local)
  assert int(checkpoints.restore(whole).state.step) == 16
  checkpoints.close()
  again = loop.train(toy_config(checkpoint__local=local), str(tmp_path / "run"))
  assert equal(whole, again)


def test_a_damaged_local_file_falls_back_to_the_one_before(tmp_path: pathlib.Path):
  arrays = {"a": jax.numpy.asarray(SIZES[0]), "b": jax.numpy.asarray(SIZES[1])}
  tier = LocalTier(tmp_path, "run")
  for step in (1, 2, 3):
    tier.save(step, arrays, {"step": step})
  tier.wait()
  assert tier.steps() == [2, 3]
  newest = max(tmp_path.rglob("*.safetensors"))
  data = bytearray(newest.read_bytes())
  data[-1] ^= 1
  newest.write_bytes(data)
  step, found, extra = tier.restore(arrays, after=0)
  assert (step, extra) == (2, {"step": 2}) and equal(found, arrays)
  assert tier.restore(arrays, after=2) is None
  assert LocalTier(tmp_path, "another run").restore(arrays, after=0) is None
