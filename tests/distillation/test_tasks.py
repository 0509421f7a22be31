"""The stages as the loop trains them: what moves, what is seen, where weights come from."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.records import write_records
from lpm_jax import media
from lpm_jax.distillation import heard, online_task, samples, tasks
from lpm_jax.models.lpm import LPM
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.parallel.sharding import shard_batch
from lpm_jax.training import loop
from lpm_jax.training.frozen import Frozen
from lpm_jax.training.state import TrainState
from lpm_jax.training.step import CompiledStep, make_step
from lpm_jax.training.task import make_task
from lpm_jax.weights import shipped
from tests.distillation.stages import batch_of, config_of, model_of
from tests.training.job import Job
from tests.training.test_base import encoded_clip, rows_of


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
