"""Regressions: the backbone learns where trajectories end, the refiner where all began."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.loader import stack
from lpm_jax.diffusion import flow
from lpm_jax.distillation import heard, regression
from lpm_jax.distillation.trajectories import TrajectorySettings
from lpm_jax.streaming import sampler
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.training import loop
from lpm_jax.training.task import make_task
from tests.distillation.stages import SETTINGS, batch_of, config_of, model_of


def test_a_student_that_knows_where_trajectories_end_has_no_loss(folders, monkeypatch):
  """Each chunk has its own point; from any of them the end is a straight way of t away."""
  config = config_of(folders, "regression")
  setup, model = model_of(config)
  dataset = setup.task.dataset(0)
  batch = stack([dataset[i] for i in range(4)])
  seen = []

  def knowing(model, settings, clean, noise, noisy, t, conditions):
    seen.append(np.asarray(t))
    there = jnp.maximum(t, 1e-6)[:, :, None, None, None]
    return (noisy - clean) / there

  monkeypatch.setattr(regression, "forced", knowing)
  loss, _ = setup.task.loss(model, batch, jax.random.key(0), jnp.int32(0))
  assert float(loss) < 1e-10
  chunks = seen[0][:, 1:].reshape(4, 2, 3)
  assert set(np.unique(seen[0])) <= set(np.float32(SETTINGS.levels))
  assert (chunks == chunks[:, :, :1]).all() and (chunks[:, 0, 0] != chunks[:, 1, 0]).any()
  monkeypatch.setattr(regression, "forced", lambda *given: 1.0 + knowing(*given))
  loss, _ = setup.task.loss(model, batch, jax.random.key(0), jnp.int32(0))
  expected = np.square(seen[1][:, 1:]).mean()  # a velocity that is wrong by 1 misses by t
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_refiner_begins_with_what_a_stream_makes_of_a_trajectory(folders, monkeypatch):
  setup, model = begun_refiner(folders)
  dataset = setup.task.dataset(0)
  batch = stack([dataset[i] for i in range(2)])
  batch |= setup.task.draw(batch, jax.random.key(0))
  # What is regressed itself, in place of errors.
  monkeypatch.setattr(setup.task, "error", lambda found, wanted, clean: found)

  @functools.partial(jax.jit, static_argnums=1)
  def refined_in(given, rounds):
    setup.task.config.loss.rounds = rounds
    return setup.task.loss(model, given, None, None)[1]["error"][:, 1:]

  def made(points: np.ndarray, first: int, rounds: int = 0) -> np.ndarray:
    given = batch | {"trajectory": points, "level": jnp.array([[first, 0]] * 2)}
    return np.asarray(refined_in(given, rounds))

  settings, points = setup.task.settings, batch["trajectory"].astype(np.float32)
  beginning, chunks = heard.streamed_conditions(model.backbone, batch, 2, 3)
  whole, past = heard.whole(beginning, chunks, 3), model.student.transformer.config.heard_before()
  tracks = {name: sampler.audio_chunks(getattr(whole, name), 3, past) for name in heard.TRACKS}
  chunks, noise = chunks.replace(**tracks), settings.temperature * batch["noise"]
  cut = (slice(1, 4), slice(4, 7))

  def begun(network):
    return StreamCache.empty(network.remember(points[:, -1, :1], beginning), settings.causal)

  @nnx.jit
  def evaluated(network, cache, latents, noise, level, chunk):
    past = sampler.past_of(network, cache, latents.shape)
    conditions = jax.tree.map(lambda x: x[chunk], chunks)
    return sampler.evaluate(network, past, latents, noise, level, conditions)

  # The backbone sees what truly was, as it sees its history; the refiner sees what it has made.
  networks = model.backbone.transformer, model.student.transformer
  caches, wanted = [begun(network) for network in networks], []
  for i, own in enumerate(cut):
    coarse = points[:, 0, own]
    for level, added in ((1.0, points[:, 0, own]), (0.757, noise[:, 0, own])):
      coarse, _ = evaluated(networks[0], caches[0], coarse, added, level, i)
    refined, _ = evaluated(networks[1], caches[1], coarse, noise[:, 1, own], 0.522, i)
    seen = points[:, -1, own], batch["history_noise"][:, own], settings.history
    _, left = evaluated(networks[0], caches[0], *seen, i)
    _, kept = evaluated(networks[1], caches[1], refined, jnp.zeros_like(refined), 0.0, i)
    caches = [cache.pushed(each) for cache, each in zip(caches, (left, kept), strict=True)]
    wanted.append(refined)
    assert np.abs(refined - coarse).mean() > 0.01
  wanted = np.concatenate(wanted, axis=1)
  np.testing.assert_allclose(made(points, 0, rounds=1), wanted, atol=2e-4)
  other = made(points, 0)
  np.testing.assert_allclose(other[:, :3], wanted[:, :3], atol=1e-4)
  assert np.abs(other[:, 3:] - wanted[:, 3:]).mean() > 1e-3  # it saw the trajectory's end
  changed = points.copy()
  changed[:, 0, 1:4] += 1.0
  assert np.abs(made(changed, 0) - other)[:, :3].mean() > 1e-3
  np.testing.assert_array_equal(made(changed, 1), made(points, 1))  # T0 is not looked at
  changed[:, 1, 1:4] += 1.0
  assert np.abs(made(changed, 1) - made(points, 1))[:, :3].mean() > 1e-3


def begun_refiner(folder: pathlib.Path) -> tuple[loop.Setup, nnx.Module]:
  setup, model = model_of(config_of(folder, "refiner_start"))
  rng = np.random.default_rng(1)
  for part in (model.backbone, model.student):  # fresh models predict zero
    state = nnx.state(part)
    nnx.update(part, jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), state))
  return setup, model


def test_a_clip_is_a_trajectory_that_goes_straight(folders):
  setup, model = begun_refiner(folders)
  config = config_of(folders, "refiner_clips")
  of_clips, batch = make_task(config), batch_of(folders)
  batch = batch | of_clips.draw(batch, jax.random.key(1))
  assert (np.asarray(batch["level"]) == 1).all()
  clean, noise = batch["latents"].astype(np.float32), batch["noise"][:, 0]
  alike = np.corrcoef(noise[:, 1:].swapaxes(0, 1).reshape(6, -1))  # chunks of three
  np.testing.assert_allclose(alike[np.triu_indices(3, 1)], 0.5, atol=0.15)
  np.testing.assert_allclose(alike[:3, 3:], 0.0, atol=0.15)
  points = np.zeros((2, 4, *clean.shape[1:]), np.float32)  # nothing begins at T0 or T2
  points[:, 1] = flow.add_noise(clean, noise, jnp.full(clean.shape[:2], 0.757))
  points[:, 3] = clean
  errors = [
    jax.jit(lambda given, task=task: task.loss(model, given, None, None)[1])(given)
    for task, given in ((setup.task, batch | {"trajectory": points}), (of_clips, batch))
  ]
  assert errors[0].keys() == errors[1].keys()
  for name, error in errors[0].items():
    np.testing.assert_allclose(errors[1][name], error, rtol=1e-5, err_msg=name)
  config.stream.backbone = (1.0,)
  with pytest.raises(ValueError, match="stream.backbone: found .1.0,., expected a T1 for clips"):
    make_task(config)


def test_a_refiner_that_keeps_the_error_of_a_chunk_has_no_wrong_steps_but_the_first(folders):
  setup, _ = begun_refiner(folders)
  rng = np.random.default_rng(2)
  clean, history = rng.normal(size=(2, 2, 7, 4, 4, 16)).astype(np.float32)
  history[:, 0] = clean[:, 0]
  steps = lambda *given: np.asarray(setup.task._steps(*map(jnp.asarray, given)))  # noqa: E731
  np.testing.assert_allclose(steps(clean, clean), np.diff(clean, axis=1), atol=1e-6)
  off = clean.copy()
  off[:, 1:] += 0.5
  wrong = steps(off, off.copy()) - steps(clean, clean)
  np.testing.assert_allclose(wrong.mean((0, 2, 3, 4)), [0.5, 0, 0, 0, 0, 0], atol=1e-6)
  seen = steps(off, history) - steps(clean, clean)  # borders count from what was seen
  np.testing.assert_allclose(seen[:, 3], off[:, 4] - history[:, 3] - np.diff(clean, axis=1)[:, 3])
  np.testing.assert_allclose(seen[:, 4:], 0.0, atol=1e-6)


def test_trajectories_of_other_levels_are_refused(folders, tmp_path):
  config = config_of(folders, "regression")
  config.data.path = str(tmp_path)
  with pytest.raises(ValueError, match="trajectories.json"):
    make_task(config)
  values = dataclasses.asdict(TrajectorySettings(levels=(1.0, 0.5, 0.0)))
  (tmp_path / "trajectories.json").write_text(json.dumps({"trajectory": values}))
  with pytest.raises(ValueError, match="levels: found .1.0, 0.5, 0.0., expected"):
    make_task(config)
