"""The stages as the loop trains them: they run, resume bit for bit, and export their student."""

import dataclasses
import functools
import json
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs.puppets import online
from data_pipelines.clip import Trajectory
from data_pipelines.loader import stack
from data_pipelines.records import write_records
from lpm_jax import media
from lpm_jax.distillation import heard, online_task, regression, samples, tasks
from lpm_jax.distillation.trajectories import TrajectorySettings
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.lpm import LPM
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.parallel.sharding import shard_batch
from lpm_jax.streaming import sampler
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.training import loop
from lpm_jax.training.frozen import Frozen
from lpm_jax.training.state import TrainState
from lpm_jax.training.step import CompiledStep, make_step
from lpm_jax.training.task import make_task
from lpm_jax.weights import shipped
from tests.children import with_devices
from tests.training.job import Job
from tests.training.test_base import encoded_clip, rows_of

SETTINGS = TrajectorySettings(
  levels=(1.0, 0.757, 0.522, 0.0),
  causal=ChunkCausal(frames=3, sink=1, window=1),
  chunks=2,
  slots=2,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Clips, trajectories, and weights of a Base and of a backbone that differ."""
  folder = tmp_path_factory.mktemp("online")
  write_records(folder / "train" / "0.array_record", map(encoded_clip, range(8)))
  rng = np.random.default_rng(0)
  made = [
    Trajectory.of(encoded_clip(i), rng.normal(size=(4, 7, 4, 4, 16)).astype(np.float16))
    for i in range(4)
  ]
  write_records(folder / "trajectories" / "0.array_record", made)
  values = json.dumps({"trajectory": dataclasses.asdict(SETTINGS)})
  (folder / "trajectories" / "trajectories.json").write_text(values)
  c = config_of(folder, "flow")
  for seed, name in enumerate(("base", "backbone")):
    model = LPM(make_task(c).model_config, rngs=nnx.Rngs(seed))
    shipped.save_module(folder / "weights" / f"{name}.safetensors", model, config={})
  return folder


def config_of(folder: pathlib.Path, stage: str) -> ConfigDict:
  c = online.get_config(f"{stage},tiny")
  clips = "trajectories" if stage in ("regression", "refiner_start") else "train"
  c.data.path, c.data.validation = str(folder / clips), ""
  c.data.height = c.data.width = 32  # clips of 4 x 4 latents
  c.student = c.teacher = c.backbone = str(folder / "weights")
  return c


@functools.cache
def batch_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  dataset = make_task(config_of(folder, "flow")).dataset(0)
  return stack([dataset[i] for i in range(2)])


KILLED = """
import os, signal, sys
from tests.distillation.test_tasks import *
save = loop._Run._save

def killed(run, done, *args, **kwargs):
  save(run, done, *args, **kwargs)
  if done == 3:
    run.checkpoints.wait()
    os.kill(os.getpid(), signal.SIGKILL)

loop._Run._save = killed
loop.train(config_of(pathlib.Path(sys.argv[1]), sys.argv[3]), sys.argv[2])
"""


@pytest.mark.parametrize("stage", online.STAGES)
def test_a_stage_trains_resumes_bit_for_bit_and_exports_its_student(folders, tmp_path, stage):
  config = config_of(folders, stage)
  whole = loop.train(config, str(tmp_path / "whole"))
  words = [sys.executable, "-c", KILLED, str(folders), str(tmp_path / "parts"), stage]
  ended = subprocess.run(words, env=with_devices(1))
  assert ended.returncode == -signal.SIGKILL
  assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["2"]
  parts = loop.train(config, str(tmp_path / "parts"))
  assert int(parts.step) == int(whole.step) == config.steps
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_array_equal(a, b)
  model = LPM(make_task(config).model_config, rngs=nnx.Rngs(5))
  shipped.load_module(tmp_path / "whole" / "weights" / f"{config.export}.safetensors", model)
  assert all(np.isfinite(row["loss"]) for row in rows_of(tmp_path / "whole"))


@pytest.mark.parametrize("stage", ["flow", "refiner"])
def test_streams_of_validation_clips_see_their_picture_alone(folders, tmp_path, monkeypatch, stage):
  config = config_of(folders, stage)
  vae = VideoVAE(VAEConfig(base=4, multipliers=(1, 1, 1, 1), blocks=1), rngs=nnx.Rngs(3))
  monkeypatch.setattr(online_task.loading, "load_vae", lambda folder: vae)
  setup, model = model_of(config)
  streams, clips = setup.task.streaming(model), [encoded_clip(i) for i in range(2)]
  latents, _ = samples.stream_clips(*streams, vae, setup.task.settings, batch_of(folders))
  config.data.validation, config.evaluation.sample_clips = str(tmp_path / "clips"), 1
  for clip, streamed in zip(clips, np.asarray(latents), strict=True):
    clip.latents[1:7] = streamed[1:]  # clips that are what is streamed from their pictures
  write_records(tmp_path / "clips" / "0.array_record", clips)
  row = setup.task.sample(model, str(tmp_path), 3)
  assert row["validation_distance"] < 1e-5 < np.square(latents).mean()
  assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0000003-0.mp4"]
  frames = media.read_video(tmp_path / "samples" / "0000003-0.mp4").frames
  assert frames.shape == (25, 4 * 32, 4 * 64, 3)


def model_of(config: ConfigDict) -> tuple[loop.Setup, nnx.Module]:
  setup = loop.prepare(config)
  return setup, nnx.merge(setup.graphdef, setup.state.params, setup.state.rest)


def states_of(config: ConfigDict) -> list[TrainState]:
  """The states of a run from the first to the last, by the program that the loop runs."""
  setup = loop.prepare(config)
  batches = loop.make_batches(setup.task, config)
  ema, rules = config.optimiser.ema, config.sharding.rules
  made = make_step(
    setup.task, setup.graphdef, setup.optimiser, seed=config.seed, ema_decay=ema, rules=rules
  )
  step, state = CompiledStep(made, setup.mesh), setup.state
  states = [jax.tree.map(jnp.copy, state)]
  for _ in range(config.steps):
    batch = shard_batch(next(batches), setup.mesh)
    step.prepare(state, batch)
    state, _ = step(state, batch)
    states.append(jax.tree.map(jnp.copy, state))
  return states


def moved(a: object, b: object) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return any(not np.array_equal(x, y) for x, y in pairs)


def test_students_move_in_their_turn_and_encoders_and_teachers_never(folders):
  states = states_of(config_of(folders, "off_policy"))
  pairs = list(zip(states, states[1:], strict=False))
  turns = lambda of: [moved(of(a.params), of(b.params)) for a, b in pairs]  # noqa: E731
  assert turns(lambda p: p["student"]["transformer"]) == [True, False, True, False]
  assert turns(lambda p: p["scores"]["fake"]) == [True] * 4
  assert not any(turns(lambda p: [p["student"][name] for name in tasks.CONDITIONS]))
  assert not any(moved(a.rest, b.rest) for a, b in pairs)


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

  def made(points: np.ndarray, first: int) -> np.ndarray:
    given = batch | {"trajectory": points, "level": jnp.array([[first, 0]] * 2)}
    _, found = jax.jit(lambda given: setup.task.loss(model, given, None, None))(given)
    return np.asarray(found["error"][:, 1:])

  settings, points = setup.task.settings, batch["trajectory"].astype(np.float32)
  beginning, chunks = heard.streamed_conditions(model.backbone, batch, 2, 3)
  whole, past = heard.whole(beginning, chunks, 3), model.student.transformer.config.heard_before()
  tracks = {name: sampler.audio_chunks(getattr(whole, name), 3, past) for name in heard.TRACKS}
  chunks, noise = chunks.replace(**tracks), settings.temperature * batch["noise"]
  cut = (slice(1, 4), slice(4, 7))

  def begun(network):
    return StreamCache.empty(network.remember(points[:, -1, :1], beginning), settings.causal)

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
  np.testing.assert_allclose(made(points, 0), wanted, atol=2e-4)
  setup.task.config.loss.rounds = 0
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


def test_weights_come_from_their_folders(folders):
  _, model = model_of(config_of(folders, "refiner"))
  config = make_task(config_of(folders, "refiner")).model_config
  base, backbone = (LPM(config, rngs=nnx.Rngs(seed)) for seed in range(2))

  def same(found: nnx.Module, wanted: nnx.Module):
    found, wanted = shipped.flat_state(found), shipped.flat_state(wanted)
    assert set(found) == set(wanted)
    for name, leaf in wanted.items():
      np.testing.assert_allclose(found[name][...], leaf[...], atol=2e-3)  # stored in half

  same(model.scores.teacher, base)
  same(model.scores.fake, base.transformer)
  same(model.backbone, backbone)
  same(model.student, backbone)
  frozen = nnx.state(model, Frozen)
  assert len(jax.tree.leaves(frozen)) == 2 * len(jax.tree.leaves(nnx.state(base)))
  assert not jax.tree.leaves(nnx.state(model.backbone, nnx.Param))


def test_the_student_s_loss_is_zero_where_the_scores_agree(folders):
  """Fake and teacher begin alike; without guidance their predictions are the same."""
  config = config_of(folders, "off_policy")
  config.loss.update(guidance=(1.0, 1.0), regression=0.0)
  setup, model = model_of(config)
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def loss(params):
    model = nnx.merge(graphdef, params, rest, copy=True)
    batch = batch_of(folders)
    total, metrics = setup.task.loss(model, batch, jax.random.key(3), jnp.int32(0))
    return total - metrics["fake_loss"], metrics

  gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert float(metrics["matching_loss"]) == 0.0 and float(metrics["fake_loss"]) > 0.1
  assert not any(np.any(x) for x in jax.tree.leaves(gradient["student"]))


def test_streams_go_on_from_step_to_step_with_their_own_character(folders):
  config, ages, references = config_of(folders, "on_policy"), [], []
  graphdef = loop.prepare(config).graphdef
  for state in states_of(config)[1:]:
    cache, window = nnx.merge(graphdef, state.params, state.rest).running.read()
    ages.append(int(cache.chunks))
    references.append(window.conditions.references)
  assert ages == [2, 4, 6, 2]
  assert [moved(a, references[0]) for a in references] == [False, False, False, True]


@pytest.fixture(scope="module")
def alone(folders: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Two steps on policy on one device."""
  config, workdir = config_of(folders, "on_policy"), tmp_path_factory.mktemp("alone")
  config.steps = 2
  loop.train(config, str(workdir))
  return workdir


@pytest.mark.parametrize("processes", [1, 2])
def test_sharded_equals_unsharded(folders, alone, tmp_path, processes):
  """Over two devices, of one process or of two, which draw the same exits."""
  sizes = dict(processes=processes, devices=2 // processes)
  changes, module = {"folder": str(folders)}, "tests.distillation.child"
  with Job(tmp_path / "two", changes, module=module, **sizes) as job:
    assert job.codes() == [0] * processes, job.everything()
  one, two = rows_of(alone), rows_of(tmp_path / "two")
  assert len(one) == len(two) == 2
  for a, b in zip(one, two, strict=True):
    for key in ("fake_loss", "matching_loss", "grad_norm"):
      np.testing.assert_allclose(b[key], a[key], rtol=2e-4, atol=1e-6, err_msg=key)


def test_a_track_is_heard_as_in_serving():
  """The windows of `Performer`: sound before a chunk, then its own."""
  rng, rate, fps, frames, past = np.random.default_rng(0), 16_000, 24, 3, 4
  sound = rng.normal(size=(2, 40_000)).astype(np.float32)
  heard_by = []

  def encoder(window, latents):
    heard_by.append(np.asarray(window))
    return jnp.zeros((len(window), latents, 4, 1))

  made = heard.streamed_track(encoder, jnp.asarray(sound), 5, frames, past, rate, fps)
  assert made.shape == (5, 2, past + frames, 4, 1)
  chunk, first = 8_000, round(rate / fps)
  kept = np.zeros((2, round((4 * past + 1) * rate / fps)), np.float32)
  kept = np.concatenate([kept, sound[:, :first]], axis=1)[:, first:]  # the picture's own sound
  padded = np.pad(sound, ((0, 0), (0, 10_000)))
  for c in range(5):
    new = padded[:, first + c * chunk : first + (c + 1) * chunk]
    window = np.concatenate([kept, new], axis=1)
    np.testing.assert_array_equal(heard_by[c], window)
    kept = window[:, chunk:]


def test_chunks_of_no_whole_samples_are_refused():
  with pytest.raises(ValueError, match="chunk of 2 latents"):
    heard.streamed_track(None, jnp.zeros((1, 10)), 1, 2, 1, 16_000, 24)


def test_windows_that_are_no_chunks_are_refused(folders):
  config = config_of(folders, "flow")
  config.data.latent_frames = 4
  with pytest.raises(ValueError, match="stage 'flow': expected windows of 7 latents"):
    make_task(config)


def test_what_would_move_the_turns_of_the_student_is_refused(folders):
  config = config_of(folders, "refiner")
  config.guard.policy = "skip"
  with pytest.raises(ValueError, match="guard.policy: found 'skip'"):
    make_task(config)
  config = config_of(folders, "on_policy")
  config.loss.horizon = 4
  with pytest.raises(ValueError, match="loss.horizon, loss.every: found 4 and 2"):
    make_task(config)
  config = config_of(folders, "on_policy")
  config.accumulate = 2
  with pytest.raises(ValueError, match="loss.horizon: streams that go on need accumulate 1"):
    make_task(config)
