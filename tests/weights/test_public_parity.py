"""Our modules beside the public PyTorch ones, with the same random weights, in fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.umt5 import UMT5Config, UMT5Encoder
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder, normalise_waveform
from lpm_jax.weights import encoders, layout, wan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def relative_error(ours, theirs) -> float:
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def randomised(module, seed: int = 0):
  """Every parameter drawn anew, the ones that start at zero or one too."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      fan_in = p.numel() / p.shape[0] if p.ndim > 1 else 16
      noise = torch.randn(p.shape, generator=generator) * fan_in**-0.5
      p.copy_(noise + (1.0 if p.ndim == 1 or p.numel() == p.shape[0] else 0.0))
  return module.eval()


def tensors_of(module, rename=lambda name: name) -> dict[str, np.ndarray]:
  return {rename(name): value.numpy() for name, value in module.state_dict().items()}


def filled(build, entries, tensors, dropped=lambda name: False) -> nnx.Module:
  module = build()
  shapes = {name: value.shape for name, value in tensors.items()}
  layout.check(entries, module, shapes, dropped=dropped, where="the public module")
  layout.fill(entries, module, tensors)
  return module


TRUNK = TransformerConfig(width=48, heads=4, layers=4, hidden=80, text_width=20, audio_width=8)


def public_trunk(config: TransformerConfig = TRUNK, **options):
  return diffusers.WanTransformer3DModel(
    patch_size=(1, *config.patch),
    num_attention_heads=config.heads,
    attention_head_dim=config.width // config.heads,
    in_channels=options.pop("in_channels", config.channels),
    out_channels=config.channels,
    text_dim=config.text_width,
    ffn_dim=config.hidden,
    num_layers=config.layers,
    rope_max_seq_len=64,
    **options,
  )


def no_references(config: TransformerConfig, text, shape) -> Conditions:
  batch, frames, height, width, channels = shape
  silence = jnp.zeros((batch, frames, 4, config.audio_width))
  return Conditions(
    text=text,
    speak=silence,
    listen=silence,
    references=jnp.zeros((batch, 1, height, width, channels)),
    reference_kind=jnp.full((batch, 1), -1, jnp.int32),
    reference_label=jnp.full((batch, 1), -1, jnp.int32),
  )


@pytest.mark.parametrize("shape", [(1, 1, 2, 4, 16), (2, 3, 6, 4, 16), (1, 5, 4, 10, 16)])
@pytest.mark.parametrize("timestep", [0.0, 0.25, 1.0])
def test_transformer_without_audio_is_wan(shape, timestep):
  theirs = randomised(public_trunk())
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


VAE = VAEConfig(base=8, multipliers=(1, 2, 4, 4), blocks=2)


def public_vae(config: VAEConfig = VAE):
  return diffusers.AutoencoderKLWan(
    base_dim=config.base,
    z_dim=config.latent_channels,
    dim_mult=list(config.multipliers),
    num_res_blocks=config.blocks,
    temperal_downsample=list(config.temporal),
  )


@pytest.fixture(scope="module")
def both_vaes():
  theirs = randomised(public_vae())
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


UMT5 = UMT5Config(vocabulary=50, width=24, heads=3, head=10, hidden=36, layers=3)


@pytest.mark.parametrize("length", [1, 9, 300])
def test_umt5_is_transformers(length):
  config = transformers.UMT5Config(
    vocab_size=UMT5.vocabulary,
    d_model=UMT5.width,
    d_kv=UMT5.head,
    d_ff=UMT5.hidden,
    num_layers=UMT5.layers,
    num_heads=UMT5.heads,
    feed_forward_proj="gated-gelu",
  )
  theirs = randomised(transformers.UMT5EncoderModel(config))
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


SMALL_WAV = dict(channels=12, width=32, heads=4, hidden=40, layers=3)
SMALL_WAV.update(position_kernel=16, position_groups=4)


@pytest.mark.parametrize("large", [False, True])
def test_every_hidden_state_of_wav2vec2_is_transformers(large):
  config = Wav2Vec2Config(layer_norm=large, **SMALL_WAV)
  public = transformers.Wav2Vec2Config(
    conv_dim=(config.channels,) * len(config.kernels),
    hidden_size=config.width,
    num_attention_heads=config.heads,
    intermediate_size=config.hidden,
    num_hidden_layers=config.layers,
    num_conv_pos_embeddings=config.position_kernel,
    num_conv_pos_embedding_groups=config.position_groups,
    feat_extract_norm="layer" if large else "group",
    conv_bias=large,
    do_stable_layer_norm=large,
  )
  theirs = randomised(transformers.Wav2Vec2Model(public))
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
  tensors = tensors_of(randomised(public_trunk()))
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


def test_latent_statistics_are_the_published_ones():
  public = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1]).config
  assert list(wan.LATENT_MEAN) == public.latents_mean
  assert list(wan.LATENT_STD) == public.latents_std
