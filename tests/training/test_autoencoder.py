"""Training of the autoencoder: the loss falls, crops are the clip's, statistics are right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from configs.puppets.vae import get_config
from data_pipelines.clip import Clip, audio_samples
from lpm_jax.models import pixels
from lpm_jax.models.vae_layers import LinearCodec
from lpm_jax.training import autoencoder
from lpm_jax.training.autoencoder import AutoencoderTask, crop_example, latent_statistics
from lpm_jax.training.state import create_state
from lpm_jax.training.step import make_step

SIZE = 16


def _clip(seed: int, frames: int = 9, references: int = 3) -> Clip:
  """A bright square that moves over a gradient; pixel (0, 0) tells the frame."""
  rng = np.random.default_rng(seed)
  video = np.zeros((frames, SIZE, SIZE, 3), np.uint8)
  video[...] = (np.arange(SIZE) * 8)[:, None]
  for t in range(frames):
    y, x = rng.integers(0, SIZE - 4) % 8, (t + seed) % (SIZE - 4)
    video[t, y : y + 4, x : x + 4] = rng.integers(100, 255, 3)
    video[t, 0, 0] = video[t, 0, -1] = t
  audio = np.zeros(audio_samples(frames), np.float32)
  return Clip(
    clip_id=f"clip-{seed}",
    character_id="c",
    style="anime",
    source="test",
    consent="synthetic",
    fps=24.0,
    text="",
    video=video,
    speak_audio=audio,
    listen_audio=audio,
    state=np.zeros(frames, np.int8),
    references=np.full((references, SIZE, SIZE, 3), 200 + seed, np.uint8),
    reference_kind=np.array([0, 1, 2][:references], np.int32),
    reference_label=np.array([0, 1, 2][:references], np.int32),
  )


@pytest.fixture
def task(monkeypatch) -> AutoencoderTask:
  clips = [_clip(seed) for seed in range(4)]
  monkeypatch.setattr(autoencoder, "puppet_source", lambda path, split: clips)
  config = get_config("tiny")
  config.model = dict(base=4, multipliers=(1, 2), temporal=(True,), blocks=1)
  return AutoencoderTask(config)


def test_loss_falls(task):
  task.config.trainable = "all"
  model = task.build(nnx.Rngs(0))
  graphdef = nnx.graphdef(model)
  optimiser = optax.adam(1e-2)
  step = jax.jit(make_step(task, graphdef, optimiser, seed=0, ema_decay=0.9))
  dataset = task.dataset(0)
  rows = [dataset[i] for i in range(4)]
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  state, losses = create_state(model, optimiser), []
  for _ in range(20):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.7 * losses[0]


def test_a_decoder_trained_alone_leaves_the_latents_as_they_are(task):
  task.config.model.update(shortcut=True, latent_channels=8)
  task = AutoencoderTask(task.config)
  graphdef, params = nnx.split(task.build(nnx.Rngs(0)))
  example = task.dataset(0)[0]
  batch = {name: value[None] for name, value in example.items()}

  def loss(params):
    return task.loss(nnx.merge(graphdef, params), batch, jax.random.key(0), jnp.int32(0))[0]

  gradient = nnx.to_flat_state(jax.jit(jax.grad(loss, allow_int=True))(params))
  moved = {"/".join(map(str, path)) for path, g in gradient if np.any(g[...])}
  assert {"shortcut/rest/decode", "decoder/head/conv/kernel"} <= moved
  assert not [p for p in moved if p.startswith(("encoder", "quant")) or p.endswith("/encode")]

  task.config.trainable = "encoder"
  with pytest.raises(ValueError, match="trainable: found 'encoder'"):
    AutoencoderTask(task.config)


def test_crops_are_consecutive_frames_and_pictures_are_references():
  clip, rng = _clip(5), np.random.default_rng(0)
  starts = set()
  for _ in range(20):
    example = crop_example(clip, rng, frames=5, pictures=2)
    frames = example["video"][:, 0, 0, 0]
    np.testing.assert_array_equal(np.diff(frames), 1)
    starts.add(int(frames[0]))
    assert (example["pictures"] == 205).all()
  assert starts == {0, 1, 2, 3, 4}


def test_dataset_repeats_for_a_seed_and_changes_with_it(task):
  first, again, other = (task.dataset(seed) for seed in (1, 1, 2))
  assert len(first) == 4
  for i in range(4):
    np.testing.assert_array_equal(first[i]["video"], again[i]["video"])
  assert any((first[i]["video"] != other[i]["video"]).any() for i in range(4))


def test_statistics_normalise_the_latents_of_their_clips(task):
  model = task.build(nnx.Rngs(1))
  clips = [_clip(seed) for seed in range(3)]
  mean, std = latent_statistics(model, clips)
  model.latent_mean[...], model.latent_std[...] = mean, std
  video = np.stack([clip.video for clip in clips])
  latents = model.encode(pixels.from_pixels(video)).reshape(-1, 16)
  np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(latents.std(0), 1, atol=1e-3)
  with pytest.raises(ValueError, match="found no clip"):
    latent_statistics(model, [])


def test_shortcut_starts_as_the_principal_components(task):
  """Its error is the smallest of any linear map: the variance that eight components leave."""
  task.config.model.update(shortcut=True, latent_channels=8)
  task.config.data.update(statistics_clips=4, moving=0.0, change=1.0)
  task = AutoencoderTask(task.config)
  model = task.build(nnx.Rngs(3))
  task.initialiser()(model)
  videos = np.stack([_clip(seed).video for seed in range(4)])[:, 1:] / 127.5 - 1.0
  pairs = videos.reshape(4, 4, 2, SIZE // 2, 2, SIZE // 2, 2, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  pairs = pairs.reshape(-1, 24)
  singular = np.linalg.svd(pairs - pairs.mean(0), compute_uv=False)
  shortcut = model.shortcut
  latents = shortcut.encode(jnp.asarray(videos, jnp.float32), starts=False)
  np.testing.assert_allclose(latents.reshape(-1, 8).mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(np.cov(latents.reshape(-1, 8).T), np.eye(8), atol=2e-2)
  error = np.sum((np.asarray(shortcut.decode(latents, starts=False)) - videos) ** 2)
  assert error == pytest.approx(np.sum(singular[8:] ** 2), rel=1e-2, abs=1e-3)


def test_weighted_components_keep_a_small_mouth_beside_a_large_background():
  """Backgrounds of many directions fill the largest components; the blinking block gets its own."""
  rng = np.random.default_rng(0)
  video = np.repeat(rng.integers(0, 256, (50, 1, 8, 8, 3)), 4, axis=1)
  video[:, ::2, :2, :2] = 0
  video[:, 1::2, :2, :2] = 60
  video = video.reshape(200, 8, 8, 3).astype(np.uint8)
  x, errors = pixels.from_pixels(video)[None], {}
  for moving, change in ((0.0, 1.0), (5.0, 1.0), (0.0, 5.0)):
    codec = LinearCodec(8, (4, 2), rngs=nnx.Rngs(0))
    autoencoder.set_principal(codec.rest, [video], 4, moving, change)
    latents = codec.encode(x, starts=False)
    np.testing.assert_allclose(np.cov(latents.reshape(-1, 8).T), np.eye(8), atol=2e-2)
    error = (codec.decode(latents, starts=False) - x)[:, :, :2, :2].reshape(50, 4, -1)
    errors[moving, change] = float(jnp.square(error - error.mean(1, keepdims=True)).mean())
  assert errors[5.0, 1.0] < 0.05 * errors[0.0, 1.0]
  assert errors[0.0, 5.0] < 0.05 * errors[0.0, 1.0]


def test_a_fresh_model_with_a_shortcut_is_the_shortcut(task):
  task.config.model.update(shortcut=True, latent_channels=8)
  model = AutoencoderTask(task.config).build(nnx.Rngs(4))
  video = jax.random.uniform(jax.random.key(0), (1, 5, SIZE, SIZE, 3), minval=-1)
  latents = model.shortcut.encode(video, starts=True)
  np.testing.assert_allclose(model.encode(video), latents, atol=1e-5)
  expected = model.shortcut.decode(latents, starts=True)
  np.testing.assert_allclose(model.decode_posterior(latents), expected, atol=1e-5)


def test_finish_sets_the_statistics(task):
  model = task.build(nnx.Rngs(2))
  task.finish(model)
  assert jnp.abs(model.latent_std[...] - 1).max() > 0.1


def test_loss_terms_of_a_known_error():
  """A brightness offset has no edges and no motion; a sudden one has motion."""
  video = jax.random.uniform(jax.random.key(0), (1, 5, 8, 8, 3)) - 0.5
  terms = autoencoder.reconstruction_terms(video, video + 0.25, moving=4.0)
  assert float(terms["absolute"]) == pytest.approx(0.25, rel=1e-5)
  assert float(terms["square"]) == pytest.approx(0.0625, rel=1e-5)
  assert float(terms["edges"]) == pytest.approx(0, abs=1e-6)
  assert float(terms["motion"]) == pytest.approx(0, abs=1e-6)
  sudden = autoencoder.reconstruction_terms(video, video.at[:, 2:].add(0.4), moving=0.0)
  assert float(sudden["motion"]) == pytest.approx(0.1, rel=1e-5)


def test_moving_pixels_weigh_more():
  video = jnp.zeros((1, 5, 8, 8, 3)).at[:, ::2, 2:4, 2:4].set(1.0)
  weight = autoencoder.motion_weight(video, 4.0)[0, 0, :, :, 0]
  assert float(weight.mean()) == pytest.approx(1, rel=1e-5)
  assert float(weight[2, 2] / weight[0, 0]) == pytest.approx(5, rel=1e-5)
  still = autoencoder.motion_weight(video[:, :1], 4.0)
  np.testing.assert_allclose(still, 1)


def test_samples_are_a_picture_and_two_numbers(task, tmp_path):
  row = task.sample(task.build(nnx.Rngs(0)), str(tmp_path), 7)
  assert set(row) == {"validation_psnr", "validation_psnr_moving"}
  assert Image.open(tmp_path / "samples" / "000007.png").size == (6 * SIZE, 4 * SIZE)


def test_frame_count_of_the_config_is_checked():
  config = get_config("tiny")
  config.stages = (dict(name="clips", steps=1, frames=6, pictures=1, rate=1.0),)
  with pytest.raises(ValueError, match="found 6 frames"):
    AutoencoderTask(config)


def test_a_wrong_hue_is_felt_under_a_larger_error_of_brightness():
  np.testing.assert_allclose(autoencoder.opponent(jnp.full(3, 0.6)), [0.6, 0, 0], atol=1e-6)
  np.testing.assert_allclose(autoencoder.opponent(jnp.array([1.0, 0, -1.0])), [0, 1, 0])
  video = jnp.zeros((1, 1, 8, 8, 3))
  hue = jnp.array([0.1, -0.2, 0.1])

  def absolute(amount: jax.Array) -> jax.Array:
    return autoencoder.reconstruction_terms(video, video - 0.7 + amount * hue, 0.0)["absolute"]

  assert float(jax.grad(absolute)(jnp.array(1.0))) == pytest.approx(0.3, rel=1e-4)
