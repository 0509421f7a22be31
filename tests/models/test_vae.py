"""The causal autoencoder: causal, streaming equal to whole-clip, Wan2.1's structure."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models.convolution import video_convolution
from lpm_jax.models.vae import VAEConfig, VideoVAE, puppets, wan21
from lpm_jax.models.vae_layers import Tape

TINY = VAEConfig(base=4, multipliers=(1, 2, 2), blocks=1, temporal=(True, True), shortcut=True)


def _drawn(config: VAEConfig) -> VideoVAE:
  """An autoencoder in which every parameter matters, the zero-initialised ones too."""
  model = nnx.eval_shape(lambda: VideoVAE(config, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(0)

  def draw(p: jax.ShapeDtypeStruct) -> jax.Array:
    deviation = max(p.size // p.shape[-1], 4) ** -0.5 if p.ndim > 1 else 0.1
    noise = rng.standard_normal(p.shape, np.float32)
    return jnp.asarray(float(p.ndim == 1) + deviation * noise)

  nnx.update(model, jax.tree.map(draw, nnx.state(model)))
  model.latent_mean[...] = jnp.linspace(-1, 1, 16)
  model.latent_std[...] = jnp.linspace(0.5, 2, 16)
  return model


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
  return _drawn(TINY)


@pytest.fixture(scope="module")
def run(vae) -> SimpleNamespace:
  """The methods of `vae`, compiled once per shape for all tests."""
  names = ("encode", "decode", "encode_step", "decode_step", "decode_posterior")
  return SimpleNamespace(**{name: jax.jit(getattr(vae, name)) for name in names})


def _video(frames: int) -> jax.Array:
  return jax.random.uniform(jax.random.key(0), (1, frames, 8, 12, 3), minval=-1)


def _latents(frames: int) -> jax.Array:
  return jax.random.normal(jax.random.key(2), (1, TINY.latent_frames(frames), 2, 3, 16))


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_streaming_encode_equals_whole_clip(vae, run, frames):
  video = _video(frames)
  cache = vae.init_encode_cache(1, 8, 12)
  latents = []
  for start, stop in [(0, 1)] + [(t, t + 4) for t in range(1, frames, 4)]:
    latent, cache = run.encode_step(video[:, start:stop], cache)
    latents.append(latent)
  whole = run.encode(video)
  assert whole.shape == (1, 1 + (frames - 1) // 4, 2, 3, 16)
  np.testing.assert_allclose(jnp.concatenate(latents, 1), whole, atol=1e-5)
  assert run.encode_step._cache_size() <= 2  # one compilation for all steps but the first


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_streaming_decode_equals_whole_clip(vae, run, frames):
  latents = _latents(frames)
  cache = vae.init_decode_cache(1, 2, 3)
  video = []
  for k in range(latents.shape[1]):
    new, cache = run.decode_step(latents[:, k : k + 1], cache)
    video.append(new)
  whole = run.decode(latents)
  assert whole.shape == (1, frames, 8, 12, 3)
  np.testing.assert_allclose(jnp.concatenate(video, 1), whole, atol=1e-5)
  assert run.decode_step._cache_size() <= 2


def test_cache_shapes_never_change(vae):
  cache = vae.init_decode_cache(1, 2, 2)
  shapes = [jax.tree.map(jnp.shape, cache.past)]
  for _ in range(3):
    _, cache = jax.eval_shape(vae.decode_step, jnp.zeros((1, 1, 2, 2, 16)), cache)
    shapes.append(jax.tree.map(jnp.shape, cache.past))
  assert all(s == shapes[0] for s in shapes)
  encode = vae.init_encode_cache(1, 8, 8)
  shapes = [jax.tree.map(jnp.shape, encode.past)]
  for frames in (1, 4, 4):
    _, encode = jax.eval_shape(vae.encode_step, jnp.zeros((1, frames, 8, 8, 3)), encode)
    shapes.append(jax.tree.map(jnp.shape, encode.past))
  assert all(s == shapes[0] for s in shapes)


def test_later_frames_change_no_earlier_latent(run):
  video = _video(17)
  before = run.encode(video)
  for frame, latent in [(16, 4), (13, 4), (9, 3), (8, 2), (5, 2), (1, 1)]:
    after = run.encode(video.at[:, frame].add(0.5))
    np.testing.assert_array_equal(after[:, :latent], before[:, :latent])
    assert jnp.abs(after - before)[:, latent].max() > 1e-3


def test_later_latents_change_no_earlier_frame(run):
  latents = 0.1 * _latents(17)
  before = run.decode(latents)
  for latent, frame in [(4, 13), (3, 9), (2, 5), (1, 1)]:
    after = run.decode(latents.at[:, latent].add(0.5))
    np.testing.assert_array_equal(after[:, :frame], before[:, :frame])
    assert jnp.abs(after - before)[:, frame : frame + 4].max() > 1e-3


def test_causal_convolution_equals_a_padded_3d_convolution(vae):
  conv = vae.encoder.conv_in
  video = _video(5)
  expected = jax.lax.conv_general_dilated(
    video,
    conv.kernel[...],
    (1, 1, 1),
    ((2, 0), (1, 1), (1, 1)),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  np.testing.assert_allclose(conv(video, Tape()), expected + conv.bias[...], atol=1e-5)


def test_gradients_of_the_convolution_equal_those_of_a_3d_convolution():
  keys = jax.random.split(jax.random.key(6), 3)
  x, dy = (jax.random.normal(k, (2, t, 5, 4, 3)) for k, t in zip(keys, (6, 4), strict=False))
  kernel = jax.random.normal(keys[2], (3, 3, 3, 3, 3))

  def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = ((0, 0), (1, 1), (1, 1))
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=layout)

  found, expected = (jax.vjp(f, x, kernel)[1](dy) for f in (video_convolution, plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def test_resampling_equals_the_plain_convolutions(vae):
  down = vae.encoder.stages[0].resample
  x = jax.random.normal(jax.random.key(4), (1, 1, 8, 6, 4))
  expected = jax.lax.conv_general_dilated(
    x[0],
    down.resample.kernel[...],
    (2, 2),
    ((0, 1), (0, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(down(x, Tape())[0], expected + down.resample.bias[...], atol=1e-5)

  up = vae.decoder.stages[-2].resample
  x = jax.random.normal(jax.random.key(5), (1, 1, 3, 4, 8))
  expected = jax.lax.conv_general_dilated(
    x[0].repeat(2, 1).repeat(2, 2),
    up.resample.kernel[...],
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(up(x, Tape())[0], expected + up.resample.bias[...], atol=1e-5)


def test_wan21_size_has_its_parameters_and_cache():
  """Against public facts of Wan2.1: 126,892,531 parameters, 32 cached tensors in the decoder."""
  model = nnx.eval_shape(lambda: VideoVAE(wan21(), rngs=nnx.Rngs(0)))
  count = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
  assert count == 126_892_531

  def cache():
    return VideoVAE(wan21(), rngs=nnx.Rngs(0)).init_decode_cache(1, 60, 104)

  widths = [(p.shape[-1], p.shape[2] // 60) for p in jax.eval_shape(cache).past]
  expected = (
    [(16, 1)] + [(384, 1)] * 11 + [(192, 2)] + [(384, 2)] * 6 + [(192, 4)] * 6 + [(96, 8)] * 7
  )
  assert widths == expected


def test_streaming_decode_equals_whole_clip_at_the_size_of_wan21():
  vae = _drawn(wan21())
  latents = jax.random.normal(jax.random.key(3), (1, 4, 2, 1, 16))
  cache, step, video = vae.init_decode_cache(1, 2, 1), jax.jit(vae.decode_step), []
  for k in range(latents.shape[1]):
    new, cache = step(latents[:, k : k + 1], cache)
    video.append(new)
    assert len(cache.past) == 32
  whole = jax.jit(vae.decode)(latents)
  assert whole.shape == (1, 13, 16, 8, 3)
  found = jnp.concatenate(video, 1)
  assert jnp.linalg.norm(found - whole) <= 1e-5 * jnp.linalg.norm(whole)


def test_puppets_size_is_small_enough_to_ship():
  model = nnx.eval_shape(lambda: VideoVAE(puppets(), rngs=nnx.Rngs(0)))
  assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) < 1_500_000


def test_gains_of_channels_are_the_lengths_of_what_they_add():
  """Where the network is silent the decoder is a linear map: rows, times deviations."""
  model = _drawn(TINY)
  for leaf in jax.tree.leaves(model.decoder.head, is_leaf=lambda x: isinstance(x, nnx.Variable)):
    leaf[...] = jnp.zeros_like(leaf[...])
  gains = nnx.jit(lambda vae: vae.channel_gains())(model)
  rows = np.linalg.norm(model.shortcut.rest.decode[...], axis=1) * model.latent_std[...]
  np.testing.assert_allclose(gains, rows / rows.mean(), rtol=1e-4)


def test_normalisation_is_undone_by_decode(vae, run):
  latents = 0.1 * _latents(5)
  mean = latents * vae.latent_std[...] + vae.latent_mean[...]
  np.testing.assert_allclose(vae.normalise(mean), latents, atol=1e-5)
  plain = jnp.clip(run.decode_posterior(mean), -1, 1)
  np.testing.assert_allclose(run.decode(latents), plain, atol=1e-5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda vae: vae.encode(jnp.zeros((1, 6, 16, 16, 3))), "found 6 frames, expected 1 \\+ 4k"),
    (
      lambda vae: vae.encode(jnp.zeros((1, 5, 16, 14, 3))),
      "16 x 14 pixels, expected .* of 4",
    ),
    (lambda vae: vae.encode(jnp.zeros((1, 5, 16, 16, 4))), "16, 4\\), expected .*3"),
    (lambda vae: vae.decode(jnp.zeros((1, 2, 2, 2, 8))), "2, 8\\), expected .*16"),
    (
      lambda vae: vae.decode_step(jnp.zeros((1, 2, 2, 2, 16)), vae.init_decode_cache(1, 2, 2)),
      "found 2 latent frames, expected 1",
    ),
    (
      lambda vae: vae.encode_step(jnp.zeros((1, 4, 16, 16, 3)), vae.init_encode_cache(1, 16, 16)),
      "found 4 at the first step, expected 1",
    ),
    (lambda vae: VAEConfig(temporal=(True,)), "found 1 entries, .* 3"),
  ],
)
def test_wrong_shapes_are_named(vae, call, message):
  with pytest.raises(ValueError, match=message):
    call(vae)
