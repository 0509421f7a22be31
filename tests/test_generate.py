import dataclasses

import jax
import numpy as np
import pytest
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.clip import Clip, audio_samples
from lpm_jax import generate, media
from lpm_jax.diffusion.continuation import Window
from lpm_jax.generate import GenerateSettings, Generator, text_between
from lpm_jax.media import Reference
from lpm_jax.models.audio import AudioConfig
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.text import TextConfig
from lpm_jax.models.transformer import TransformerConfig
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.weights import loading

SIZE = 8
ONE_WINDOW, THREE_WINDOWS = 13, 29  # frames of 4 and of 8 latents, in windows of 4
SETTINGS = GenerateSettings(steps=2, window=4, overlap=1, blend=1, references=2, batch=2)


def _random_module(make, seed: int) -> nnx.Module:
  """A module with random parameters: initialised ones would ignore audio and predict zero."""
  rng = np.random.default_rng(seed)
  graphdef, state = nnx.split(nnx.eval_shape(make))
  draw = lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(np.float32)  # noqa: E731
  return nnx.merge(graphdef, jax.tree.map(draw, state))


@pytest.fixture(scope="module")
def models() -> tuple[LPM, VideoVAE]:
  config = LPMConfig(
    TransformerConfig(width=12, heads=2, layers=2, hidden=8, text_width=8, audio_width=8),
    AudioConfig(width=8, bands=8, kernel=3, dilations=(1,)),
    TextConfig(width=8, heads=2, layers=1, length=4),
  )
  vae = VAEConfig(base=2, multipliers=(1, 1, 1), blocks=1, temporal=(True, True))
  return (
    _random_module(lambda: LPM(config, rngs=nnx.Rngs(0)), 0),
    _random_module(lambda: VideoVAE(vae, rngs=nnx.Rngs(0)), 1),
  )


@pytest.fixture(scope="module")
def generator(models) -> Generator:
  return Generator(*models, SETTINGS)


def _picture(seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), np.uint8)


def _noise(frames: int, seed: int = 0) -> np.ndarray:
  samples = audio_samples(frames)
  return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def _make(generator, frames: int, **changes) -> np.ndarray:
  arguments = dict(
    first_frame=_picture(),
    references=[],
    speak_audio=_noise(frames, 1),
    listen_audio=_noise(frames, 2),
    texts=[(0.0, "smiles")],
    seconds=frames / 24,
    seed=0,
  )
  return generator.generate(**arguments | changes)


@pytest.fixture(scope="module")
def videos(generator) -> dict[int, np.ndarray]:
  return {frames: _make(generator, frames) for frames in (ONE_WINDOW, THREE_WINDOWS)}


@pytest.mark.parametrize("frames", [ONE_WINDOW, THREE_WINDOWS])
def test_the_seed_decides_every_bit(generator, videos, frames):
  assert videos[frames].shape == (frames, SIZE, SIZE, 3) and videos[frames].dtype == np.uint8
  np.testing.assert_array_equal(_make(generator, frames), videos[frames])
  other = _make(generator, frames, seed=1)
  assert (other[1:] != videos[frames][1:]).any()
  np.testing.assert_array_equal(other[0], videos[frames][0], "the first frame is given")


def test_without_noise_seeds_agree(models):
  calm = Generator(*models, dataclasses.replace(SETTINGS, temperature=0.0))
  one, other = (_make(calm, ONE_WINDOW, seed=seed) for seed in (0, 1))
  np.testing.assert_array_equal(one, other)


def test_any_length_is_met_to_the_frame(generator):
  for frames in (ONE_WINDOW - 2, THREE_WINDOWS - 1):
    assert len(_make(generator, frames)) == frames


def test_every_condition_reaches_the_video(generator, videos):
  frames = ONE_WINDOW
  changes = dict(
    first_frame=_picture(5),
    references=[Reference(_picture(6), 0, 0)],
    speak_audio=np.zeros(0, np.float32),
    listen_audio=np.zeros(0, np.float32),
    texts=[(0.0, "nods")],
  )
  for field, value in changes.items():
    assert (_make(generator, frames, **{field: value}) != videos[frames]).any(), field


def test_audio_and_text_of_a_later_window_leave_earlier_ones_alone(generator, videos):
  frames = THREE_WINDOWS
  changed = _noise(frames, 1)
  changed[-1000:] = 0
  # Latents 0 .. 2 are settled before a window hears the end of the track.
  for change in ({"speak_audio": changed}, {"texts": [(0.0, "smiles"), (0.8, "nods")]}):
    video = _make(generator, frames, **change)
    np.testing.assert_array_equal(video[:9], videos[frames][:9])
    assert (video[9:] != videos[frames][9:]).any()


def test_the_main_picture_is_the_global_reference_when_there_is_none(generator, videos):
  same = _make(generator, ONE_WINDOW, references=[Reference(_picture(), 0, 0)])
  np.testing.assert_array_equal(same, videos[ONE_WINDOW])


def test_the_sampler_holds_the_latents_it_is_given(generator):
  script = generator._clip_script(_clip(1))
  sample_window, first = generator._prepare([script], 4)
  made = sample_window(Window(0, 4, known=1, blend=0), first, script.key[None])
  assert np.abs(first).max() > 0
  np.testing.assert_array_equal(made[:, :1], first)


def test_references_that_do_not_fit_are_refused(generator):
  with pytest.raises(ValueError, match="references: found 3, expected at most 2"):
    _make(generator, ONE_WINDOW, references=[Reference(_picture(), 1, i) for i in range(2)])
  with pytest.raises(ValueError, match=r"reference 0: found shape \(4, 4, 3\)"):
    _make(generator, ONE_WINDOW, references=[Reference(_picture()[:4, :4], 0, 0)])


def _clip(seed: int, frames: int = ONE_WINDOW) -> Clip:
  count = seed % 3
  return Clip(
    clip_id=f"clip-{seed}",
    character_id="c",
    style="s",
    source="test",
    consent="synthetic",
    fps=24.0,
    text="smiles",
    video=np.stack([_picture(seed)] * frames),
    speak_audio=_noise(frames, seed),
    listen_audio=_noise(frames, seed + 1),
    state=np.zeros(frames, np.int8),
    references=np.stack([_picture(i) for i in range(2)])[:count],
    reference_kind=np.arange(count, dtype=np.int32),
    reference_label=np.zeros(count, np.int32),
  )


def test_a_clip_does_not_depend_on_its_batch(generator):
  clips = [_clip(seed) for seed in (0, 2, 4)]
  videos = generator.generate_batch(clips)
  assert [video.shape for video in videos] == [(ONE_WINDOW, SIZE, SIZE, 3)] * 3
  again = generator.generate_batch(clips[::-1])[::-1]
  for one, other in zip(videos, again, strict=True):
    np.testing.assert_array_equal(one, other)
  assert generator.generate_batch([]) == []


def test_clips_of_another_rate_are_refused(generator):
  clip = dataclasses.replace(
    _clip(0), fps=48.0, speak_audio=_noise(7)[:4333], listen_audio=_noise(7)[:4333]
  )
  with pytest.raises(ValueError, match="'clip-0': fps: found 48.0, expected 24"):
    generator.generate_batch([clip])


def test_text_between_takes_what_holds_longest():
  texts = [(0.0, "a"), (1.0, "b"), (5.0, "c")]
  assert text_between(texts, 0.0, 1.9) == "a"
  assert text_between(texts, 0.0, 2.1) == "b"
  assert text_between(texts, 8.0, 9.0) == "c"
  assert text_between([], 0.0, 1.0) == ""


@pytest.mark.parametrize(
  "field,value",
  [("steps", 0), ("solver", "magic"), ("window", 3), ("batch", 0), ("temperature", 1.1)],
)
def test_settings_that_cannot_work_are_refused(field, value):
  with pytest.raises(ValueError, match=f"{field}: found"):
    GenerateSettings(**{"overlap": 3, "blend": 1, field: value})


@pytest.fixture
def config(tmp_path, models, monkeypatch):
  monkeypatch.setattr(loading, "load_models", lambda folder: models)
  Image.fromarray(_picture()).save(tmp_path / "me.png")
  for name, seed in (("speak", 1), ("listen", 2)):
    # Any video is an audio file too.
    media.write_video(
      tmp_path / f"{name}.mp4", np.zeros((13, 8, 8, 3), np.uint8), 24, _noise(ONE_WINDOW, seed)
    )
  return ConfigDict(
    dict(
      picture=str(tmp_path / "me.png"),
      references=(f"{tmp_path}/me.png:global",),
      speak_audio=str(tmp_path / "speak.mp4"),
      listen_audio=str(tmp_path / "listen.mp4"),
      text="0:calm;0.2:smiles",
      seconds=ONE_WINDOW / 24,
      size=SIZE,
      seed=0,
      output="video.mp4",
      scale=2,
      weights="puppets",
      generation=dataclasses.asdict(SETTINGS),
    )
  )


@pytest.mark.parametrize("partner", [True, False])
def test_a_request_becomes_an_mp4(config, tmp_path, partner):
  if not partner:
    config.listen_audio = ""
  path = generate.generate_to_file(config, tmp_path / "out")
  video = media.read_video(path)
  assert video.frames.shape == (ONE_WINDOW, 2 * SIZE, 2 * SIZE, 3) and video.fps == 24
  assert video.audio.shape[1] == (2 if partner else 1)
  assert abs(len(video.audio) - audio_samples(ONE_WINDOW)) <= 1024
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["video.mp4"]


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("picture", "{}/empty.png", "empty.png: found an empty file"),
    ("references", ("{}/gone.png:global",), "gone.png: found no such file"),
    ("speak_audio", "{}/cut.mp4", "cut.mp4: found"),
    ("speak_audio", "{}/silent.mp4", "silent.mp4: found only silence"),
    ("output", "../me.png/video.mp4", "video.mp4: found"),
  ],
)
def test_bad_input_is_told_before_any_work(config, tmp_path, monkeypatch, field, value, message):
  def never(folder):
    raise AssertionError("weights were loaded before the inputs were checked")

  monkeypatch.setattr(loading, "load_models", never)
  (tmp_path / "empty.png").touch()
  (tmp_path / "cut.mp4").write_bytes((tmp_path / "speak.mp4").read_bytes()[:2000])
  still = np.zeros((13, 8, 8, 3), np.uint8)
  media.write_video(tmp_path / "silent.mp4", still, 24, np.zeros(8000, np.float32))
  here = lambda text: text.format(tmp_path)  # noqa: E731
  config[field] = here(value) if isinstance(value, str) else tuple(map(here, value))
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(ValueError, match=message):
    generate.generate_to_file(config, tmp_path / "out")
  left = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
  assert not left


def test_a_silent_side_of_a_dialogue_is_told(config, tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  both = np.stack([np.zeros(8000, np.float32), _noise(12)], axis=1)
  media.write_video(tmp_path / "both.mp4", np.zeros((12, 8, 8, 3), np.uint8), 24, both)
  config.update(speak_audio="", listen_audio="", dialogue_audio="")
  config.dialogue_audio = str(tmp_path / "both.mp4")
  generate.generate_to_file(config, tmp_path)
  assert len(said) == 1 and "both.mp4: the character's side is silent" in said[0]
