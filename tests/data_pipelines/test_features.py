"""Features of frozen encoders: stored = made on the fly, what a stream hears, read by training."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from configs.puppets.base import get_config
from data_pipelines import records
from data_pipelines.clip import ClipError, EncodedClip, audio_samples
from data_pipelines.features import FrozenEncoders, load_encoders
from data_pipelines.loader import ExampleConfig, example_from_clip, stack
from data_pipelines.tokenizer import UMT5Tokenizer
from lpm_jax.generate import GenerateSettings, Generator
from lpm_jax.models.umt5 import UMT5Config, UMT5Encoder
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder, normalise_waveform
from lpm_jax.training.base import BaseTask
from tests.fixtures.small_tokenizer import VOCABULARY, save

TEXT = dict(vocabulary=VOCABULARY, width=16, heads=2, head=8, hidden=16, layers=1)
AUDIO = dict(channels=8, width=16, heads=2, hidden=16, layers=2, position_kernel=8)
AUDIO.update(position_groups=2)
LATENTS = 9  # 33 frames, 1.375 s


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> FrozenEncoders:
  path = save(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
  return FrozenEncoders(
    UMT5Encoder(UMT5Config(**TEXT), rngs=nnx.Rngs(0)),
    UMT5Tokenizer(path, length=6),
    Wav2Vec2Encoder(Wav2Vec2Config(**AUDIO), rngs=nnx.Rngs(1)),
  )


def _clip(seed: int = 0, text: str = "she smiles.") -> EncodedClip:
  rng = np.random.default_rng(seed)
  frames = 4 * (LATENTS - 1) + 1
  tracks = rng.uniform(-0.5, 0.5, (2, audio_samples(frames))).astype(np.float32)
  return EncodedClip(
    *(f"clip-{seed}", "c", "anime", "test", "synthetic"),
    fps=24.0,
    text=text,
    latents=rng.normal(size=(LATENTS, 4, 4, 16)).astype(np.float32),
    speak_audio=tracks[0],
    listen_audio=tracks[1],
    state=np.ones(frames, np.int8),
    references=rng.normal(size=(1, 4, 4, 16)).astype(np.float32),
    reference_kind=np.zeros(1, np.int32),
    reference_label=np.zeros(1, np.int32),
  )


def test_features_are_of_the_text_it_has_and_of_whole_seconds(frozen):
  clip = frozen.added(_clip())
  assert clip.text_features.shape == (4, 16)  # she, smiles, ., the end
  assert clip.speak_features.shape == clip.listen_features.shape == (100, 3, 16)
  assert {clip.text_features.dtype, clip.speak_features.dtype} == {np.dtype(ml_dtypes.bfloat16)}
  assert (clip.speak_features != clip.listen_features).any()
  assert frozen.added(clip) is clip


def test_a_second_hears_two_seconds_of_past_and_nothing_after(frozen):
  """The first second of a track does not change with what comes later."""
  clip = _clip()
  later = clip.speak_audio.copy()
  later[16_000:] = 0.0
  first, second = frozen(clip), frozen(dataclasses.replace(clip, speak_audio=later))
  np.testing.assert_array_equal(first["speak_features"][:50], second["speak_features"][:50])
  assert (first["speak_features"][50:] != second["speak_features"][50:]).any()
  encoder = Wav2Vec2Encoder(Wav2Vec2Config(**AUDIO), rngs=nnx.Rngs(1))
  window = np.concatenate([np.zeros(32_080, np.float32), clip.speak_audio[:16_000]])[None]
  states = encoder(normalise_waveform(jnp.asarray(window)))[0, -50:]
  np.testing.assert_allclose(
    first["speak_features"][:50].astype(np.float32), states, rtol=1e-2, atol=1e-2
  )


def test_stored_features_come_back(frozen, tmp_path):
  clip = frozen.added(_clip())
  records.write_records(tmp_path / "x.array_record", [clip], half=True)
  again = records.RecordSource(tmp_path / "x.array_record")[0]
  for name in ("text_features", "speak_features", "listen_features"):
    np.testing.assert_array_equal(getattr(again, name), getattr(clip, name))
  assert again.latents.dtype == again.references.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(again.latents, clip.latents.astype(ml_dtypes.bfloat16))
  np.testing.assert_array_equal(again.speak_audio, clip.speak_audio)


def test_a_window_starts_at_the_nearest_feature(frozen):
  clip = frozen.added(_clip())
  rows = np.arange(100, dtype=np.float32).astype(ml_dtypes.bfloat16)
  clip = dataclasses.replace(
    clip, speak_features=np.broadcast_to(rows[:, None, None], (100, 3, 16))
  )
  cut = ExampleConfig(frames=2, slots=1, text_length=6, random_start=1.0)
  starts = set()
  for seed in range(40):
    example = example_from_clip(clip, np.random.default_rng(seed), cut)
    assert example["text_features"].shape == (6, 16)
    assert not example["text_features"][4:].any()
    heard, first = example["speak_features"][:, 0, 0].astype(int), example["start"]
    window = next(i for i in range(LATENTS) if (clip.latents[i] == example["latents"][0]).all())
    expected = round((window - first) * 4 / 24 * 50)
    starts.add(expected)
    inside = heard[: 100 - expected]
    np.testing.assert_array_equal(inside, np.arange(expected, expected + len(inside)))
    assert not heard[100 - expected :].any()
  assert len(starts) > 2


@pytest.fixture
def task(tmp_path) -> BaseTask:
  records.write_records(tmp_path / "plain/0.array_record", [_clip(i) for i in range(2)])
  config = get_config("tiny")
  config.data.path, config.data.validation = str(tmp_path / "plain"), ""
  config.model.text.length = 6
  config.model.transformer.update(text_width=16, channels=16)
  config.model.frozen_text, config.model.frozen_audio = TEXT, AUDIO
  return BaseTask(config)


def test_training_reads_stored_features_like_those_made_on_the_fly(task, frozen, tmp_path):
  with pytest.raises(ClipError, match=r"clip-0.*text_features: missing: encode it with frozen"):
    task.dataset(0)[0]
  task._frozen = frozen
  on_the_fly = stack([task.dataset(0)[i] for i in range(2)])
  stored = [frozen.added(_clip(i)) for i in range(2)]
  records.write_records(tmp_path / "stored/0.array_record", stored)
  task.config.data.path, task._frozen = str(tmp_path / "stored"), None
  read = stack([task.dataset(0)[i] for i in range(2)])
  assert set(read) == set(on_the_fly)
  for name, value in read.items():
    np.testing.assert_array_equal(value, on_the_fly[name], err_msg=name)

  graphdef, params = nnx.split(task.build(nnx.Rngs(0)))
  key = jax.random.key(0)

  def loss(params):
    return task.loss(nnx.merge(graphdef, params), read, key, jnp.int32(0))[0]

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(gradient)}
  assert {"speak/read/kernel", "listen/mixture", "text/null"} <= paths
  assert not [path for path in paths if path.startswith("text/table")]


def test_a_text_encoder_needs_its_tokenizer(task):
  frozen = dict(text="somewhere", tokenizer="", audio="", length=6)
  task.config.frozen = frozen
  with pytest.raises(ValueError, match="frozen.text is 'somewhere', frozen.tokenizer is ''"):
    load_encoders(task.config.frozen)
  with pytest.raises(ValueError, match="somewhere: no wav2vec2 here"):
    task.config.frozen.update(text="", audio="somewhere")
    load_encoders(task.config.frozen)


def test_generation_reads_what_training_read(task, frozen):
  """Both tracks and the text reach the model through the frozen encoders."""
  model = task.build(nnx.Rngs(0))
  draw = np.random.default_rng(0)
  sizes = VAEConfig(base=2, multipliers=(1, 1, 1), temporal=(True, True), blocks=1)
  vae = VideoVAE(sizes, rngs=nnx.Rngs(0))
  for module in (model, vae):  # as they are made, they ignore audio and all but centre taps
    values = jax.tree.map(lambda x: x + draw.normal(0, 0.4, x.shape), nnx.state(module))
    nnx.update(module, values)
  settings = GenerateSettings(steps=2, window=3, overlap=1, blend=1, references=1, batch=1)
  with pytest.raises(ValueError, match="this model reads features of frozen encoders"):
    Generator(model, vae, settings)
  generator, clip = Generator(model, vae, settings, frozen), _clip()
  given = dict(
    first_frame=draw.integers(0, 255, (8, 8, 3), np.uint8),
    references=[],
    speak_audio=clip.speak_audio,
    listen_audio=clip.listen_audio,
    texts=[(0.0, "she smiles.")],
    seconds=9 / 24,
  )
  video = generator.generate(**given)
  np.testing.assert_array_equal(video, generator.generate(**given))
  for name, other in (
    ("texts", [(0.0, ".")]),
    ("speak_audio", 0 * clip.speak_audio),
    ("listen_audio", 0 * clip.listen_audio),
  ):
    assert (generator.generate(**{**given, name: other}) != video).any(), name
