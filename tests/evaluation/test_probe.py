"""The probe reads whole videos in chunks, learns, and its task draws what it claims."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.puppets.character import ALL_STYLES, HIDDEN
from data_pipelines.puppets.pose import POSE_INDEX
from lpm_jax.evaluation import probe_task
from lpm_jax.evaluation.probe import Probe, ProbeConfig, read_video

SIZES = {"widths": (8, 8, 8), "hidden": 16}
TINY = ProbeConfig(attributes=tuple(HIDDEN), styles=ALL_STYLES, **SIZES)


def tiny_task(folder="", characters: int = 1) -> probe_task.ProbeTask:
  data = {"folder": str(folder), "characters": characters}
  return probe_task.ProbeTask(ConfigDict({"data": data, "model": SIZES}))


@pytest.fixture(scope="module")
def frames() -> dict[str, np.ndarray]:
  return probe_task.draw_frames(0, 5)


def test_reading_in_chunks_equals_reading_at_once(frames):
  probe = Probe(TINY, rngs=nnx.Rngs(0))
  whole = read_video(probe, frames["frames"], chunk=len(frames["frames"]))
  parts = read_video(probe, frames["frames"], chunk=16)
  np.testing.assert_allclose(parts.pose, whole.pose, atol=1e-5)
  assert set(parts.attributes) == set(HIDDEN)
  assert all(track.shape == (len(frames["frames"]),) for track in parts.attributes.values())


def test_wrong_frames_are_named():
  probe = Probe(TINY, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"float32 \(2, 64, 64, 3\), expected uint8"):
    read_video(probe, np.zeros((2, 64, 64, 3), np.float32))


def test_shipped_size_is_small():
  config = ProbeConfig(attributes=tuple(HIDDEN), styles=ALL_STYLES)
  shapes = nnx.eval_shape(lambda: Probe(config, rngs=nnx.Rngs(0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))) < 700_000


def test_probe_learns_a_batch(frames):
  task = tiny_task()
  probe = task.build(nnx.Rngs(0))
  graphdef, state = nnx.split(probe)
  optimiser = optax.adam(3e-3)

  @jax.jit
  def step(state, moments, key):
    def loss(state):
      return task.loss(nnx.merge(graphdef, state), frames, key, 0)

    (value, scalars), grads = jax.value_and_grad(loss, has_aux=True)(state)
    updates, moments = optimiser.update(grads, moments)
    return optax.apply_updates(state, updates), moments, value, scalars

  moments, losses = optimiser.init(state), []
  for i in range(60):
    state, moments, value, scalars = step(state, moments, jax.random.key(i))
    losses.append(float(value))
  assert np.mean(losses[-5:]) < 0.6 * losses[0]
  assert 0 <= float(scalars["attribute_accuracy"]) <= 1


def test_hidden_attributes_carry_no_loss(frames):
  task = tiny_task()
  probe = task.build(nnx.Rngs(0))
  flipped = np.where(frames["visible"] == 0, 1 - frames["attributes"], frames["attributes"])
  assert (flipped != frames["attributes"]).any()
  loss = jax.jit(lambda batch: task.loss(probe, batch, jax.random.key(0), 0)[0])
  assert float(loss(frames)) == float(loss(frames | {"attributes": flipped}))


def test_poses_cover_what_clips_seldom_show():
  pose = probe_task.random_poses(np.random.default_rng(0), 2000)
  for name, (low, high) in probe_task.RANGES.items():
    track = pose[:, POSE_INDEX[name]]
    assert track.min() >= low and track.max() <= high
    assert track.max() > 0.9 * high and (low == 0 or track.min() < 0.9 * low)


def test_degraded_frames_stay_pictures_and_differ(frames):
  x = jnp.asarray(frames["frames"][:4], jnp.float32) / 127.5 - 1
  y = probe_task.degrade(x, jax.random.key(0))
  assert (
    y.shape == x.shape and float(jnp.abs(y).max()) <= 1 and float(jnp.abs(y - x).mean()) > 0.005
  )


def test_cached_frames_are_drawn_once_and_equal(tmp_path, frames):
  task = tiny_task(tmp_path, 2)
  dataset = task.dataset(0)
  assert len(dataset) == 2 * probe_task.POSES_PER_CHARACTER
  np.testing.assert_array_equal(dataset[9]["frames"], frames["frames"][9])
  written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
  task.dataset(1)
  assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
  assert not list(tmp_path.glob(".*"))
  with pytest.raises(ValueError, match="characters"):
    tiny_task(tmp_path, 10**6).dataset(0)
