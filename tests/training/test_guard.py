"""Bad steps: skipped inside the step, or left out by going back, the same way every time."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from lpm_jax.training import loop
from lpm_jax.training.guard import (
  Guard,
  GuardConfig,
  LossSpikeError,
  NotFiniteError,
  skipping,
  with_limits,
)
from lpm_jax.training.step import make_step
from tests.training.job import losses_of
from tests.training.toy import toy_config


def steps_with(row: int, steps: int = 30) -> list[int]:
  """Steps whose batch holds a row of the toy data, from the loader itself."""
  batches = loop.make_batches(loop.make_task(toy_config()), toy_config())
  return [step for step in range(steps) if row in next(batches)["i"]]


def equal(a: object, b: object) -> bool:
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def test_a_skipped_step_leaves_all_but_the_counter():
  setup = loop.prepare(toy_config(bad_rows=(3,)))
  step_fn = make_step(setup.task, setup.graphdef, setup.optimiser, seed=0, ema_decay=0.9)
  guarded = jax.jit(skipping(step_fn))
  rng = np.random.default_rng(0)
  batch = {"x": rng.normal(size=(4, 8)), "y": rng.normal(size=(4, 4)), "i": np.arange(4) + 4}
  batch = jax.tree.map(lambda x: x.astype(np.float32), batch)

  def limited(limit: float, **changes: np.ndarray) -> dict:
    return with_limits({**batch, **changes}, np.full(2, limit, np.float32), setup.mesh)

  good, _ = guarded(setup.state, limited(np.inf))
  assert equal(good, jax.jit(step_fn)(setup.state, batch)[0]) and int(good.step) == 1
  for bad in (limited(np.inf, i=np.arange(4, dtype=np.float32)), limited(1e-3)):
    after, _ = guarded(good, bad)
    assert int(after.step) == 2
    assert equal(dataclasses.replace(after, step=good.step), good)


def test_only_bad_steps_are_skipped(tmp_path: pathlib.Path):
  changes = dict(bad_rows=(3,), bad_from=12, guard={"policy": "skip"}, evaluation__log_every=1)
  loop.train(toy_config(**changes), str(tmp_path))
  rows = losses_of(tmp_path)
  skipped = [step for step in steps_with(3) if step >= 12]
  assert skipped and [step for step in range(30) if step + 1 not in rows] == skipped


def test_a_run_that_skips_is_bit_equal_after_restarts(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  guard = {"policy": "skip", "spike": 3.0, "window": 6}
  changes = dict(bad_rows=(3,), bad_scale=50.0, bad_from=10, guard=guard, evaluation__log_every=1)
  whole = loop.train(toy_config(**changes), str(tmp_path / "whole"))
  bad = [step for step in range(30) if step + 1 not in losses_of(tmp_path / "whole")]
  assert [step for step in steps_with(3) if step >= 10] == bad
  # Ends after a good step, and after a bad one.
  monkeypatch.setattr(
    loop.PreemptionNotice, "reached", lambda self, step: step in (bad[0], bad[0] + 1)
  )
  for _ in range(2):
    with pytest.raises(SystemExit):
      loop.train(toy_config(**changes), str(tmp_path / "pieces"))
  again = loop.train(toy_config(**changes), str(tmp_path / "pieces"))
  assert int(again.step) == 30 and equal(whole, again)


def test_rewind_goes_back_and_leaves_the_batches_out(tmp_path: pathlib.Path):
  changes = dict(bad_rows=(3,), bad_from=11, guard={"policy": "rewind"}, checkpoint__every=3)
  state = loop.train(toy_config(**changes), str(tmp_path))
  # The same by hand: the batch read next, the step, and both as they were at the last checkpoint.
  source = loop.make_batches(loop.make_task(toy_config()), toy_config())
  rows = [next(source)["i"] for _ in range(200)]
  position, step, saved, rewinds = 0, 0, (0, 0), 0
  while step < 30:
    is_bad = step >= 11 and 3 in rows[position]
    position, step = position + 1, saved[1] if is_bad else step + 1
    rewinds += is_bad
    saved = (position, step) if step % 3 == 0 and not is_bad else saved
  assert rewinds > 1 and int(state.step) == 30
  checkpoints = loop.Checkpoints(tmp_path, "{}", keep=3)
  data = loop.make_batches(loop.make_task(toy_config()), toy_config())
  data.set_state(checkpoints.restore(state).data)
  checkpoints.close()
  np.testing.assert_array_equal(next(data)["i"], rows[position])


def test_rewind_without_a_checkpoint_and_beyond_the_limit_stops(tmp_path: pathlib.Path):
  guard = {"policy": "rewind", "limit": 2}
  with pytest.raises(NotFiniteError, match="step 4: loss is nan; newest checkpoint: step None"):
    loop.train(toy_config(poison=4, guard=guard), str(tmp_path / "early"))
  with pytest.raises(NotFiniteError, match="step 24: .*went back to step 20 2 times"):
    loop.train(toy_config(poison=24, guard=guard), str(tmp_path / "often"))


def test_limits_are_medians_of_steps_two_and_more_before():
  guard = Guard(GuardConfig(policy="stop", spike=4.0, window=4))
  for step, loss in enumerate([1.0, 3.0, 5.0, 7.0, 9.0, 9.5]):
    assert guard.accepts(step, {"loss": loss, "grad_norm": 10 * loss})
    known = [1.0, 3.0, 5.0, 7.0, 9.0, 9.5][: max(step, 0)][-4:]  # of the step after: up to step - 1
    expected = 4 * np.median(known) if len(known) >= 2 else np.inf
    np.testing.assert_allclose(guard.limits(step + 1), [expected, 10 * expected])
  with pytest.raises(LossSpikeError, match="step 6: grad_norm is 500, 4 medians are 240"):
    guard.accepts(6, {"loss": 9.0, "grad_norm": 500.0})


def test_too_many_skips_in_a_row_stop():
  guard = Guard(GuardConfig(policy="skip", limit=2))
  nan = {"loss": np.nan, "grad_norm": 1.0}
  assert not guard.accepts(0, nan) and not guard.accepts(1, nan)
  with pytest.raises(NotFiniteError, match="step 2: loss is nan; 3 steps in a row"):
    guard.accepts(2, nan)


def test_unknown_policies_are_refused():
  with pytest.raises(ValueError, match="guard.policy: found 'ignore', expected one of"):
    GuardConfig(policy="ignore")
