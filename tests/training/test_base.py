"""Base training on synthetic encoded clips: it runs through all stages and skips what is given."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs.puppets import base as puppets
from data_pipelines.clip import TWIN, ClipError, EncodedClip, audio_samples
from data_pipelines.loader import stack
from data_pipelines.records import write_records
from lpm_jax import media
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.training import loop, samples
from lpm_jax.training.base import BaseTask
from tests.training.child import base_config
from tests.training.job import Job

STATES = {"speak": (1, 0), "listen": (2, 0), "idle": (0, 0), "dialogue": (1, 2)}


def encoded_clip(index: int, latents: int = 8) -> EncodedClip:
  rng = np.random.default_rng(index)
  frames = 4 * (latents - 1) + 1
  state = np.resize(np.array(list(STATES.values())[index % 4], np.int8), frames)
  return EncodedClip(
    clip_id=f"clip {index}",
    character_id="p",
    style="anime",
    source="test",
    consent="synthetic",
    fps=24.0,
    text="smiles",
    latents=rng.normal(size=(latents, 4, 4, 16)).astype(np.float32),
    speak_audio=rng.uniform(-0.1, 0.1, audio_samples(frames)).astype(np.float32),
    listen_audio=np.zeros(audio_samples(frames), np.float32),
    state=state,
    references=rng.normal(size=(3, 4, 4, 16)).astype(np.float32),
    reference_kind=np.array([0, 1, 2], np.int32),
    reference_label=np.array([0, 2, 5], np.int32),
  )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
  folder = tmp_path_factory.mktemp("latents")
  write_records(folder / "train" / "0.array_record", map(encoded_clip, range(8)))
  write_records(folder / "validation" / "0.array_record", map(encoded_clip, range(20, 24)))
  c = puppets.get_config("tiny")
  c.data.path, c.data.validation = str(folder / "train"), str(folder / "validation")
  return c


def test_the_shapes_of_a_batch_are_known_without_data(config: ConfigDict):
  task, longest = BaseTask(config), 0
  config.data.update(height=32, width=32)
  shapes = task.abstract_batch(5)
  example = task.dataset(0, stage=longest)[3]
  stored = dict.fromkeys(("latents", "references"), jnp.bfloat16)  # as `lpm data encode` does
  assert {name: (x.shape[1:], x.dtype) for name, x in shapes.items()} == {
    name: (np.shape(x), stored.get(name, np.asarray(x).dtype)) for name, x in example.items()
  }
  assert {x.shape[0] for x in shapes.values()} == {5}
  config.data.height = 0
  with pytest.raises(ValueError, match="data.height: found 0"):
    task.abstract_batch(5)


def test_all_stages_run_and_the_weights_load(config: ConfigDict, tmp_path: pathlib.Path):
  loop.train(config, str(tmp_path))
  rows = rows_of(tmp_path)
  assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
  assert [row["step"] for row in rows if "validation_loss" in row] == [0, 8]
  again = ConfigDict(config.to_dict())
  again.init = str(tmp_path / "weights")
  state = loop.prepare(again).state
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_array_equal(a, b)


def test_four_processes_have_the_losses_of_one(tmp_path: pathlib.Path):
  folder = tmp_path / "clips"
  write_records(folder / "train" / "0.array_record", map(encoded_clip, range(8)))
  write_records(folder / "validation" / "0.array_record", map(encoded_clip, range(20, 28)))
  with Job(tmp_path / "four", {"base": str(folder)}) as job:
    loop.train(base_config(str(folder), data=-1), str(tmp_path / "one"))
    assert job.codes() == [0] * 4, job.everything()
  rows = [rows_of(tmp_path / name) for name in ("one", "four")]
  assert [row["step"] for row in rows[0]] == [1, 2]
  for one, four in zip(*rows, strict=True):
    for name in ("loss", "grad_norm"):
      np.testing.assert_allclose(four[name], one[name], rtol=1e-4, err_msg=f"{name} {one['step']}")


def rows_of(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_stages_hold_the_clip_kinds_of_their_mixture(config: ConfigDict):
  changed = ConfigDict(config.to_dict())
  changed.stages = (dict(name="a", steps=1, mixture=dict(listen=1.0)),)
  ((_, dataset),) = BaseTask(changed).stages(0)
  states = np.concatenate([dataset[i]["state"] for i in range(6)])
  assert 2 in states and 1 not in states


def test_clips_in_half_give_the_loss_of_the_same_numbers_in_float32(
  config: ConfigDict, tmp_path: pathlib.Path
):
  write_records(tmp_path / "0.array_record", map(encoded_clip, range(2)), half=True)
  task = BaseTask(ConfigDict(config.to_dict()))
  task.config.data.path = str(tmp_path)
  half = stack([task.dataset(0)[i] for i in range(2)])
  assert half["latents"].dtype == half["references"].dtype == jnp.bfloat16
  wide = {name: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for name, x in half.items()}
  graphdef, state = nnx.split(task.build(nnx.Rngs(0)))
  state = jax.tree.map(lambda x: x + 0.1, state)  # the head starts at zero

  @jax.jit
  def loss(batch: dict) -> jax.Array:
    return task.loss(nnx.merge(graphdef, state), batch, jax.random.key(0), jnp.int32(0))[0]

  found, expected = (loss(batch) for batch in (half, wide))
  assert found.dtype == jnp.float32 and float(found) == float(expected) != 0.0


def test_clips_in_half_and_in_float32_are_not_mixed(config: ConfigDict, tmp_path: pathlib.Path):
  write_records(tmp_path / "a" / "0.array_record", map(encoded_clip, range(4)), half=True)
  changed = ConfigDict(config.to_dict())
  with changed.ignore_type():
    changed.data.path = (str(tmp_path / "a"), config.data.path)
  with pytest.raises(ClipError, match="latents: found bfloat16 and float32, expected one dtype"):
    BaseTask(changed).stages(0)


def test_twins_are_trained_in_pairs_with_the_same_draws(config: ConfigDict, tmp_path: pathlib.Path):
  clips = []
  for clip in (encoded_clip(2), encoded_clip(6)):
    other = clip.latents + np.float32(1.0)
    other[0] = clip.latents[0]
    twin = dataclasses.replace(clip, clip_id=clip.clip_id + TWIN, latents=other)
    clips += [clip, twin]
  write_records(tmp_path / "0.array_record", clips)
  changed = ConfigDict(config.to_dict())
  changed.data.twins = str(tmp_path)
  changed.stages = (dict(name="t", steps=1, mixture={}, twins=True, extra_references=1.0),)
  task = BaseTask(changed)
  ((_, dataset),) = task.stages(0)
  batch = stack([dataset[i] for i in range(4)])
  apart = (batch["twin_latents"] - batch["latents"])[:, :, 0, 0, 0]
  np.testing.assert_allclose(apart, [[0, 1, 1]] * 4, atol=1e-6)
  graphdef, state = nnx.split(task.build(nnx.Rngs(0)))
  run = jax.jit(lambda s, b: task.loss(nnx.merge(graphdef, s), b, jax.random.key(0), 0))
  loss, parts = run(state, batch)
  # A new model predicts 0, whatever it is given.
  assert float(parts["twin_loss"]) == pytest.approx(1.0, abs=0.01)
  assert float(loss) == pytest.approx(float(parts["flow_loss"] + 0.5 * parts["twin_loss"]))


def test_given_latents_are_clean_at_timestep_zero_and_carry_no_loss(config: ConfigDict):
  task = BaseTask(config)
  example = task.dataset(0, stage=0)[0]
  batch = {name: jnp.stack([rows, rows]) for name, rows in example.items()}
  batch["known"], batch["start"] = jnp.array([1, 2]), jnp.array([0, 4])
  seen = {}

  class Spy:
    """Hears latent k as the number k."""

    def encode_conditions(self, batch: dict, frames: int) -> Conditions:
      seen["drops"] = [batch[f"drop_{name}"].shape for name in ("text", "speak", "listen")]
      tokens = jnp.broadcast_to(jnp.arange(frames)[:, None, None], (2, frames, 1, 1))
      return Conditions(None, tokens, tokens, *[batch["references"]] * 3)

    def __call__(
      self, latents: jax.Array, timestep: jax.Array, heard: Conditions, time: jax.Array
    ) -> jax.Array:
      seen.update(latents=latents, timestep=timestep, speak=heard.speak, listen=heard.listen)
      return jnp.where((timestep == 0)[:, :, None, None, None], 1e6, 0.0) + 0 * latents

  loss, _ = task.loss(Spy(), batch, jax.random.key(0), jnp.int32(0))
  np.testing.assert_array_equal(seen["timestep"] == 0, [[True, False, False], [True, True, False]])
  np.testing.assert_array_equal(seen["latents"][1, :2], batch["latents"][1, :2])
  for track in ("speak", "listen"):
    np.testing.assert_array_equal(seen[track][..., 0, 0], [[0, 1, 2], [4, 5, 6]])
  assert seen["drops"] == [(2,)] * 3
  assert float(loss) < 100


def test_a_window_within_a_clip_is_given_what_the_model_makes_of_its_first_latents(
  config: ConfigDict,
):
  changed = ConfigDict(config.to_dict())
  changed.loss.update(own_given=1.0, motion=0.0)  # clips weigh places by how they move
  task, plain = BaseTask(changed), BaseTask(config)
  dataset = task.dataset(0)
  batch = stack([dataset[i] for i in range(4)])
  batch["known"] = np.array([1, 2, 2, 1], np.int32)
  model = task.build(nnx.Rngs(0))
  rng = np.random.default_rng(1)  # fresh models predict zero
  state = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), nnx.state(model))
  graphdef, key = nnx.graphdef(model), jax.random.key(3)
  drawn = task.draw(batch, key)
  before = plain.draw(batch, key)
  assert set(drawn) - set(before) == {"own_t", "own_noise"}
  for name, value in before.items():  # recipes without it keep their draws
    np.testing.assert_array_equal(drawn[name], value)
  np.testing.assert_array_equal(drawn["own_t"] > 0, [False, True, True, False])

  def seen(state: nnx.State, batch: dict) -> jax.Array:
    model = nnx.merge(graphdef, state)
    conditions = samples.encode_window(model, batch)
    return task._as_made(model, batch["latents"].astype(jnp.float32), conditions, batch)

  batch |= drawn
  latents = np.asarray(batch["latents"], np.float32)
  t = np.broadcast_to(batch["own_t"][:, None], latents.shape[:2])[..., None, None, None]
  noisy = (1 - t) * latents + t * batch["own_noise"]
  model = nnx.merge(graphdef, state)
  conditions = samples.encode_window(model, batch)
  made = noisy - t * model(noisy, jnp.asarray(t[..., 0, 0, 0]), conditions, batch["time"])
  found = np.asarray(jax.jit(seen)(state, batch))
  np.testing.assert_allclose(found[1:3, :2], made[1:3, :2], atol=1e-5)
  assert np.abs(made[1:3, :2] - latents[1:3, :2]).mean() > 0.01
  np.testing.assert_array_equal(found[:, 2:], latents[:, 2:])
  np.testing.assert_array_equal(found[[0, 3]], latents[[0, 3]])

  # Nothing flows back to what was given: as if a clip had begun like that.
  run = jax.jit(jax.value_and_grad(lambda s, b: task.loss(nnx.merge(graphdef, s), b, None, 0)[0]))
  loss = run(state, batch)
  del batch["own_t"]
  expected = run(state, {**batch, "latents": found})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), loss, expected)
  assert abs(float(run(state, batch)[0] - loss[0])) > 1e-4


def test_sample_videos_show_model_and_clip_side_by_side(
  config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  vae = VideoVAE(VAEConfig(base=4, multipliers=(1, 1, 1, 1), blocks=1), rngs=nnx.Rngs(0))
  monkeypatch.setattr(samples.loading, "load_vae", lambda folder: vae)
  task = BaseTask(config)
  example = task.dataset(0, stage=0)[0]
  batch = {name: np.stack([rows]) for name, rows in example.items()}
  settings = ConfigDict(dict(sample_steps=2, sample_shift=3.0, sample_guidance=1.0, vae="x"))
  samples.write_samples(task.build(nnx.Rngs(0)), batch, str(tmp_path), 7, settings)
  video = media.read_video(tmp_path / "samples" / "0000007-0.mp4")
  assert video.frames.shape == (9, 4 * 32, 4 * 64, 3)
