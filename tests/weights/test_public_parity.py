"""Our modules beside the public PyTorch ones, with the same random weights, in fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.lpm_17b.weights import get_config as weights_config
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.umt5 import UMT5Encoder
from lpm_jax.models.vae import VideoVAE
from lpm_jax.models.wav2vec2 import Wav2Vec2Encoder, normalise_waveform
from lpm_jax.weights import encoders, layout, loading, wan
from lpm_jax.weights.exporting import export_weights
from lpm_jax.weights.importing import import_weights
from tests.fixtures.golden import TRUNK, UMT5, VAE, WAVES
from tests.weights.conditions import no_references

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from tests.fixtures.public_modules import (  # noqa: E402
  public_trunk,
  public_umt5,
  public_vae,
  public_wav2vec2,
  randomised,
  tensors_of,
)


def relative_error(ours, theirs) -> float:
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def filled(build, entries, tensors, dropped=lambda name: False) -> nnx.Module:
  module = build()
  shapes = {name: value.shape for name, value in tensors.items()}
  layout.check(entries, module, shapes, dropped=dropped, where="the public module")
  layout.fill(entries, module, tensors)
  return module


@pytest.mark.parametrize("shape", [(1, 1, 2, 4, 16), (2, 3, 6, 4, 16), (1, 5, 4, 10, 16)])
@pytest.mark.parametrize("timestep", [0.0, 0.25, 1.0])
def test_transformer_without_audio_is_wan(shape, timestep):
  theirs = randomised(public_trunk(TRUNK))
  build = lambda: VideoTransformer(TRUNK, rngs=nnx.Rngs(0))  # noqa: E731
  ours = filled(build, wan.transformer_layout(TRUNK), tensors_of(theirs))
  rng = np.random.default_rng(1)
  latents = rng.normal(size=shape).astype(np.float32)
  text = rng.normal(size=(shape[0], 7, TRUNK.text_width)).astype(np.float32)
  with torch.no_grad():
    expected = theirs(
      hidden_states=torch.from_numpy(np.moveaxis(latents, -1, 1)),
      timestep=torch.full((shape[0],), 1000.0 * timestep),
      encoder_hidden_states=torch.from_numpy(text),
      return_dict=False,
    )[0]
  times = jnp.full(shape[:2], timestep)
  found = jax.jit(ours.__call__)(latents, times, no_references(TRUNK, jnp.asarray(text), shape))
  assert relative_error(np.moveaxis(np.asarray(found), -1, 1), expected) <= 1e-5


@pytest.fixture(scope="module")
def both_vaes():
  theirs = randomised(public_vae(VAE))
  build = lambda: VideoVAE(VAE, rngs=nnx.Rngs(0))  # noqa: E731
  return filled(build, wan.vae_layout(VAE), tensors_of(theirs)), theirs


@pytest.mark.parametrize("frames", [1, 5, 17, 33])
def test_autoencoder_is_wan(both_vaes, frames):
  ours, theirs = both_vaes
  rng = np.random.default_rng(frames)
  video = rng.uniform(-1, 1, (1, frames, 24, 40, 3)).astype(np.float32)
  latents = rng.normal(size=(1, VAE.latent_frames(frames), 3, 5, 16)).astype(np.float32)
  with torch.no_grad():
    posterior = theirs.encode(torch.from_numpy(np.moveaxis(video, -1, 1))).latent_dist
    decoded = theirs.decode(torch.from_numpy(np.moveaxis(latents, -1, 1))).sample
  mean, log_variance = jax.jit(ours.encode_moments)(video)
  assert relative_error(np.moveaxis(np.asarray(mean), -1, 1), posterior.mean) <= 1e-5
  log_variance = np.clip(np.moveaxis(np.asarray(log_variance), -1, 1), -30, 20)
  assert relative_error(log_variance, posterior.logvar) <= 1e-5
  found = np.clip(np.asarray(jax.jit(ours.decode_posterior)(latents)), -1, 1)
  assert relative_error(np.moveaxis(found, -1, 1), decoded) <= 1e-5


@pytest.mark.parametrize("length", [1, 9, 300])
def test_umt5_is_transformers(length):
  theirs = randomised(public_umt5(UMT5))
  ours = filled(
    lambda: UMT5Encoder(UMT5, rngs=nnx.Rngs(0)),
    encoders.umt5_layout(UMT5),
    tensors_of(theirs),
    encoders.umt5_dropped,
  )
  tokens = np.random.default_rng(0).integers(1, UMT5.vocabulary, (2, length))
  tokens[1, length // 2 + 1 :] = 0
  present = torch.from_numpy((tokens > 0).astype(np.int64))
  with torch.no_grad():
    expected = theirs(torch.from_numpy(tokens), attention_mask=present).last_hidden_state
  found = jax.jit(ours.__call__)(tokens.astype(np.int32))
  assert relative_error(found, expected * present[..., None]) <= 1e-5


@pytest.mark.parametrize("large", [False, True])
def test_every_hidden_state_of_wav2vec2_is_transformers(large):
  config = WAVES[large]
  theirs = randomised(public_wav2vec2(config))
  ours = filled(
    lambda: Wav2Vec2Encoder(config, rngs=nnx.Rngs(0)),
    encoders.wav2vec2_layout(config),
    tensors_of(theirs, encoders.wav2vec2_name),
    encoders.wav2vec2_dropped,
  )
  waveform = np.random.default_rng(0).normal(size=(2, 6400)).astype(np.float32)
  extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
  values = extractor(list(waveform), sampling_rate=16_000, return_tensors="pt").input_values
  normalised = normalise_waveform(jnp.asarray(waveform))
  assert relative_error(normalised, values) <= 1e-5
  with torch.no_grad():
    result = theirs(values, output_hidden_states=True)
  expected = [*result.hidden_states[:-1], result.last_hidden_state]
  found = jax.jit(ours.__call__)(normalised)
  assert found.shape[2] == len(expected) == config.layers + 1
  for i, states in enumerate(expected):
    assert relative_error(found[:, :, i], states) <= 1e-5


def test_export_gives_the_public_tensors_back():
  tensors = tensors_of(randomised(public_trunk(TRUNK)))
  entries = wan.transformer_layout(TRUNK)
  build = lambda: VideoTransformer(TRUNK, rngs=nnx.Rngs(0))  # noqa: E731
  again = layout.read_out(entries, filled(build, entries, tensors))
  assert set(again) == set(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(again[name], tensor)


@pytest.mark.parametrize("size", ["1.3B", "14B"])
def test_every_published_name_and_shape_has_its_place(size):
  """The whole text-to-video checkpoints, as shapes only."""
  config = TransformerConfig.lpm_17b()
  if size == "1.3B":
    config = TransformerConfig(
      width=1536, heads=12, layers=30, hidden=8960, text_width=4096, audio_width=1536
    )
  with torch.device("meta"):
    theirs = public_trunk(config)
  shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
  ours = nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0)))
  entries = wan.transformer_layout(config)
  found = layout.check(entries, ours, shapes, dropped=wan.dropped, where=size)
  assert not found.dropped
  assert all("audio" in path for path in found.new)
  if size == "14B":
    assert sum(int(np.prod(shape)) for shape in found.new.values()) == pytest.approx(
      3.147e9, rel=1e-3
    )


def test_the_image_to_video_checkpoint_loses_clip_and_twenty_channels():
  """All of the 14B names and shapes, as shapes only."""
  config = TransformerConfig.lpm_17b()
  with torch.device("meta"):
    theirs = public_trunk(config, in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
  shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
  ours = nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0)))
  entries = wan.transformer_layout(config, inputs=36)
  found = layout.check(entries, ours, shapes, dropped=wan.dropped, where="I2V 14B")
  clip = {name for name in shapes if "image_embedder" in name or "add" in name}
  assert len(clip) == 40 * 5 + 8
  assert set(found.dropped) == clip | {"patch_embedding.weight[:, 16:]"}
  assert found.dropped["patch_embedding.weight[:, 16:]"] == (5120, 20, 1, 2, 2)


def test_diffusers_reads_what_is_exported(tmp_path):
  """Weights, config and shards: the public module runs on them and is ours."""
  source = tmp_path / "public"
  randomised(public_trunk(TRUNK)).save_pretrained(source)
  config = weights_config("t2v_1b")
  sizes = dict(width=48, heads=4, layers=4, hidden=80, text_width=20, audio_width=8)
  config.update(model=sizes, source=str(source), weights=str(tmp_path / "ours"))
  import_weights(config, tmp_path / "ours")
  export_weights(config, tmp_path / "out")
  first, second = (
    diffusers.WanTransformer3DModel.from_pretrained(folder)
    for folder in (source, tmp_path / "out/transformer")
  )
  sizes_of = lambda m: {k: v for k, v in m.config.items() if not k.startswith("_")}  # noqa: E731
  assert sizes_of(second) == {**sizes_of(first), "rope_max_seq_len": 1024}
  for name, value in first.state_dict().items():
    assert torch.equal(value, second.state_dict()[name]), name


def test_a_pytorch_file_imports_like_safetensors(tmp_path):
  """The autoencoder is published as .pth, under its makers' names."""
  names = zip(wan.vae_layout(VAE, "original"), wan.vae_layout(VAE, "diffusers"), strict=True)
  tensors = randomised(public_vae(VAE)).state_dict()
  renamed = {original.source: tensors[public.source] for original, public in names}
  torch.save(renamed, tmp_path / "Wan2.1_VAE.pth")
  config = weights_config("vae")
  config.update(source=str(tmp_path / "Wan2.1_VAE.pth"))
  config.model = dict(base=8, multipliers=(1, 2, 4, 4), blocks=2)
  import_weights(config, tmp_path / "ours")
  ours = loading.load_vae(tmp_path / "ours")
  assert tuple(np.asarray(ours.latent_mean[...])) == tuple(np.float32(wan.LATENT_MEAN))
  found = layout.read_out(wan.vae_layout(VAE), ours)
  for name, value in tensors.items():
    np.testing.assert_array_equal(found[name], value.numpy())
  whole = (tmp_path / "Wan2.1_VAE.pth").read_bytes()
  (tmp_path / "Wan2.1_VAE.pth").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(layout.WeightsError, match=r"Wan2\.1_VAE\.pth: not a whole PyTorch"):
    import_weights(config, tmp_path / "again")


def test_latent_statistics_are_the_published_ones():
  public = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1]).config
  assert list(wan.LATENT_MEAN) == public.latents_mean
  assert list(wan.LATENT_STD) == public.latents_std
