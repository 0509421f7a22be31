"""Preference tuning: zero reward at the start, the closed form's gradient, resume, sharding."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs.puppets import preference
from data_pipelines.clip import Candidates, Preference
from data_pipelines.loader import stack
from data_pipelines.records import write_records
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.training import loop
from lpm_jax.training.base import BaseTask
from lpm_jax.training.preference import preference_loss
from lpm_jax.training.task import make_task
from lpm_jax.weights import shipped
from tests.children import with_devices
from tests.training.test_base import encoded_clip, rows_of

FRAMES = 4


def pair(index: int) -> Preference:
  clip, rng = encoded_clip(index), np.random.default_rng(100 + index)
  made = rng.normal(size=(3, FRAMES, 4, 4, 16)).astype(np.float16)
  made[:, 0] = clip.latents[0]
  candidates = Candidates.of(clip, made, [{"lips": 0.9}, {"lips": 0.1}, {"lips": 0.5}])
  return Preference.of(candidates, 2, 1, ["lips"], "measurements")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Pairs, and weights of a Base whose head is not zero."""
  folder = tmp_path_factory.mktemp("preference")
  write_records(folder / "train" / "0.array_record", map(pair, range(8)))
  write_records(folder / "validation" / "0.array_record", map(pair, range(20, 24)))
  config = preference.get_config("tiny")
  model = LPM(BaseTask(config).model_config, rngs=nnx.Rngs(0))
  rng, changed = np.random.default_rng(0), []
  for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    noise = 0.05 * rng.normal(size=leaf.shape).astype(np.float32)
    changed.append((path, leaf.replace(leaf[...] + noise)))
  nnx.update(model, nnx.from_flat_state(changed))
  shipped.save_module(folder / "weights" / "base.safetensors", model, config={})
  return folder


def config_of(folder: pathlib.Path) -> ConfigDict:
  c = preference.get_config("tiny")
  c.data.path, c.data.validation = str(folder / "train"), str(folder / "validation")
  c.data.height = c.data.width = 32
  c.reference = str(folder / "weights")
  c.evaluation.sample_every = c.steps
  return c


@pytest.fixture(scope="module")
def trained(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
  """A run from beginning to end: (its folder, its last state)."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, loop.train(config_of(folder), str(workdir))


def test_a_student_that_is_the_reference_has_no_reward_and_the_loss_of_a_coin(trained):
  first = next(row for row in rows_of(trained[0]) if "loss" in row)
  for name in ("reward_margin", "reward_winner", "reward_loser"):
    assert abs(first[name]) < 1e-3, name
  assert first["preference_loss"] == pytest.approx(np.log(2), abs=1e-3)
  assert first["loss"] == pytest.approx(np.log(2) + first["flow_loss"], abs=1e-3)
  assert first["flow_loss"] > 0.1


def test_validation_reports_what_training_does(trained):
  rows = [row for row in rows_of(trained[0]) if "validation_loss" in row]
  assert [row["step"] for row in rows] == [0, 4]
  assert abs(rows[0]["validation_reward_margin"]) < 1e-3 < abs(rows[1]["validation_reward_margin"])
  assert 0.0 <= rows[1]["validation_implicit_accuracy"] <= 1.0


def test_only_the_student_s_transformer_learns(folder: pathlib.Path, trained):
  start, end = loop.prepare(config_of(folder)).state, trained[1]
  assert same(start.rest, end.rest)
  before, after = start.params["student"], end.params["student"]
  assert not same(before["transformer"], after["transformer"])
  assert all(same(before[name], after[name]) for name in ("text", "speak", "listen"))


def same(a: object, b: object) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def test_a_run_that_stopped_ends_bit_for_bit_where_an_uninterrupted_one_does(
  folder: pathlib.Path, trained, tmp_path: pathlib.Path
):
  part = config_of(folder)
  part.max_minutes = 1e-9  # stops after the first step
  assert int(loop.train(part, str(tmp_path)).step) == 1
  parts = loop.train(config_of(folder), str(tmp_path))
  assert int(parts.step) == int(trained[1].step) == 4
  assert same(parts, trained[1])


def test_the_exported_weights_are_a_base_that_moved(folder: pathlib.Path, trained):
  config = make_task(config_of(folder)).model_config
  tuned, old = (LPM(config, rngs=nnx.Rngs(5)) for _ in range(2))
  shipped.load_module(trained[0] / "weights" / "base.safetensors", tuned)
  shipped.load_module(folder / "weights" / "base.safetensors", old)
  assert not same(nnx.state(tuned), nnx.state(old))
  pairs = zip(jax.tree.leaves(nnx.state(tuned)), jax.tree.leaves(nnx.state(old)), strict=True)
  assert all(np.allclose(a, b, atol=1e-2) for a, b in pairs)


SHARDED = """
import sys
from tests.training.test_preference import *
c = config_of(pathlib.Path(sys.argv[1]))
c.steps, c.sharding.mesh, c.evaluation.sample_every = 2, {"data": 1, "fsdp": 2}, 0
loop.train(c, sys.argv[2])
"""


def test_sharded_equals_unsharded(folder: pathlib.Path, trained, tmp_path: pathlib.Path):
  words = [sys.executable, "-c", SHARDED, str(folder), str(tmp_path)]
  subprocess.run(words, check=True, env=with_devices(2))
  one = [row for row in rows_of(trained[0]) if "loss" in row]
  two = [row for row in rows_of(tmp_path) if "loss" in row]
  assert len(two) == 2
  for a, b in zip(one, two, strict=False):
    for key in ("preference_loss", "flow_loss", "grad_norm", "reward_winner", "reward_loser"):
      np.testing.assert_allclose(b[key], a[key], rtol=2e-3, atol=1e-3, err_msg=key)


def test_the_gradient_is_that_of_the_closed_form():
  """With s = beta / 2 sigmoid(-margin): s + regulariser for the winner, -s for the loser."""
  rng = np.random.default_rng(0)
  errors, before = rng.uniform(0.4, 0.6, (2, 5, 2))
  beta, regulariser = 30.0, 0.7

  def loss(errors):
    return preference_loss(errors, jnp.asarray(before), beta, regulariser)[0]

  found = jax.grad(loss)(jnp.asarray(errors))
  margin = 0.5 * beta * ((before - errors) @ [1.0, -1.0])
  share = 0.5 * beta / (1 + np.exp(margin)) / 5
  expected = np.stack([share + regulariser / 5, -share], axis=1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  value = np.log1p(np.exp(-margin)).mean() + regulariser * errors[:, 0].mean()
  np.testing.assert_allclose(loss(jnp.asarray(errors)), value, rtol=1e-5)


def test_rewards_and_accuracy_of_hand_made_errors():
  """The first winner gained more than its loser, the second less, the third pair did not move."""
  before = jnp.full((3, 2), 0.5)
  errors = before + jnp.array([[-0.1, 0.1], [0.2, 0.1], [0.0, 0.0]])
  loss, metrics = preference_loss(errors, before, 10.0, 0.0)
  assert float(metrics["implicit_accuracy"]) == pytest.approx(0.5)
  assert float(metrics["reward_winner"]) == pytest.approx(5 * (0.1 - 0.2 + 0.0) / 3, abs=1e-6)
  assert float(metrics["reward_loser"]) == pytest.approx(5 * (-0.1 - 0.1 + 0.0) / 3, abs=1e-6)
  assert float(metrics["reward_margin"]) == pytest.approx(5 * (0.2 - 0.1) / 3, abs=1e-6)
  margins = 5 * np.array([0.2, -0.1, 0.0])
  assert float(loss) == pytest.approx(np.log1p(np.exp(-margins)).mean())


def test_both_videos_have_one_noise_one_timestep_and_the_conditions_of_their_clip(folder):
  task = make_task(config_of(folder))
  dataset = task.dataset(0)
  batch = stack([dataset[i] for i in range(2)])
  seen = []

  class Spy:
    """Takes the picture's clean latent for granted and predicts nothing."""

    def encode_conditions(self, batch: dict, frames: int):
      heard = jnp.zeros((2, frames, 1, 1))
      names = ("references", "reference_kind", "reference_label")
      return Conditions(None, heard, heard, *(batch[name] for name in names))

    def __call__(self, latents, timestep, conditions, time):
      seen.append((np.asarray(latents), np.asarray(timestep), conditions.references))
      return jnp.zeros_like(latents)

  model = ConfigDict(dict(student=None, reference=None))
  with model.ignore_type():
    model.student, model.reference = Spy(), Spy()
  task.loss(model, batch, jax.random.key(0), jnp.int32(0))
  (latents, t, references), again = seen
  np.testing.assert_array_equal(latents, again[0])
  np.testing.assert_array_equal(t[0::2], t[1::2])
  assert (t[:, 0] == 0).all() and (t[:, 1:] > 0).all() and t[0, 1] != t[2, 1]
  winner, loser = (batch[name].astype(np.float32) for name in ("latents", "loser"))
  keep = (1 - t[0::2])[:, :, None, None, None]
  np.testing.assert_allclose(latents[0::2] - keep * winner, latents[1::2] - keep * loser, atol=1e-5)
  np.testing.assert_array_equal(latents[:, 0], np.repeat(winner[:, 0], 2, axis=0))
  np.testing.assert_array_equal(references, np.repeat(batch["references"], 2, axis=0))


def test_an_example_shows_every_reference_of_its_record(folder: pathlib.Path):
  config = config_of(folder)
  config.data.slots = 3
  dataset = make_task(config).dataset(0)
  for i in range(4):
    assert sorted(dataset[i]["reference_kind"]) == [0, 1, 2]


def test_the_shapes_of_a_batch_are_known_without_data(folder: pathlib.Path):
  task = make_task(config_of(folder))
  example, stored = task.dataset(0)[0], dict.fromkeys(["references"], jnp.bfloat16)
  assert {name: (x.shape, x.dtype) for name, x in task.abstract_batch(3).items()} == {
    name: ((3, *np.shape(x)), stored.get(name, np.asarray(x).dtype)) for name, x in example.items()
  }


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(loss=dict(beta=0.0)), "loss.beta, .*found 0.0"),
    (dict(loss=dict(regulariser=-1.0)), "loss.beta, loss.regulariser: found 2000.0, -1.0"),
    (dict(stages=(dict(name="s", steps=1, mixture={}, extension=0.5),)), "stage 's': extension"),
  ],
)
def test_settings_that_make_no_sense_are_named(folder: pathlib.Path, change: dict, message: str):
  config = config_of(folder)
  with config.ignore_type():
    config.update(change)
  with pytest.raises(ValueError, match=message):
    make_task(config)


def test_clips_without_a_preference_are_named(folder: pathlib.Path, tmp_path: pathlib.Path):
  write_records(tmp_path / "0.array_record", [encoded_clip(0)])
  config = config_of(folder)
  config.data.path = str(tmp_path)
  with pytest.raises(ValueError, match="clip 'clip 0' in .*: winner: missing: make it with"):
    make_task(config).dataset(0)[0]


def test_a_wrong_preference_is_named():
  one = pair(0)
  with pytest.raises(ValueError, match="'clip 0': loser: found shape"):
    dataclasses.replace(one, loser=one.loser[:2])
  with pytest.raises(ValueError, match="'clip 0': better: found no dimension"):
    dataclasses.replace(one, better=[])
