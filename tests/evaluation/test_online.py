"""Streams as systems of an evaluation: weights by folder, one table with Base, what they keep."""

import dataclasses
import itertools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.eval import online as recipe
from data_pipelines.clip import Clip, audio_samples
from data_pipelines.puppets.character import ALL_STYLES, HIDDEN
from lpm_jax.evaluation import cost, probe_task, run, suite
from lpm_jax.evaluation.online import OnlineSystem
from lpm_jax.evaluation.probe import Probe, ProbeConfig
from lpm_jax.generate import GenerateSettings
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.vae import VideoVAE
from lpm_jax.streaming.sampler import StreamSettings
from lpm_jax.weights import loading, shipped
from tests.streaming.small import PICTURE, SETTINGS, SIZES, VAE

SLOTS = 13
FRAMES = 37  # the picture and three chunks of 12
PROBE = ProbeConfig(tuple(HIDDEN), ALL_STYLES, (8, 8, 8), 16, size=16)


def save(folder, **modules: nnx.Module):
  """Writes `name`.safetensors of each module with the config of its kind."""
  configs = {"vae": VAE, "probe": PROBE}
  for name, module in modules.items():
    config = dataclasses.asdict(configs.get(name, SIZES))
    shipped.save_module(folder / f"{name}.safetensors", module, config=config, dtype="float32")


def awake(build: Callable[[], nnx.Module], seed: int) -> nnx.Module:
  """A module with random parameters, those included that begin at zero; nothing is compiled."""
  rng = np.random.default_rng(seed)
  graphdef, state = nnx.split(nnx.eval_shape(build))
  fill = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)  # noqa: E731
  return nnx.merge(graphdef, jax.tree.map(fill, state))


def make_lpm(seed: int, sizes: LPMConfig = SIZES) -> LPM:
  return awake(lambda: LPM(sizes, rngs=nnx.Rngs(0)), seed)


def make_probe() -> Probe:
  return Probe(PROBE, rngs=nnx.Rngs(0))


def make_vae() -> VideoVAE:
  return awake(lambda: VideoVAE(VAE, rngs=nnx.Rngs(0)), 2)


def beginning(clip: Clip, frames: int = FRAMES) -> Clip:
  """The first frames of a clip, every fourth pixel of them."""
  events = [event for event in clip.truth["events"] if event["end_s"] * clip.fps < frames]
  samples = audio_samples(frames)
  return dataclasses.replace(
    clip,
    video=np.ascontiguousarray(clip.video[:frames, ::4, ::4]),
    references=np.ascontiguousarray(clip.references[:, ::4, ::4]),
    state=clip.state[:frames],
    speak_audio=clip.speak_audio[:samples],
    listen_audio=clip.listen_audio[:samples],
    truth=clip.truth | {"pose": clip.truth["pose"][:frames], "events": events},
  )


@pytest.fixture(scope="module")
def system() -> OnlineSystem:
  models = loading.StreamModels(make_lpm(5), make_vae(), make_lpm(6).transformer)
  return OnlineSystem(models, SETTINGS, references=SLOTS)


def play(system: OnlineSystem, references=(), texts=((0.0, "calm"),), frames=FRAMES) -> np.ndarray:
  sound = 0.1 * np.random.default_rng(2).normal(size=audio_samples(FRAMES)).astype(np.float32)
  return system.stream(PICTURE, list(references), sound, 0 * sound, texts, frames, seed=3)


def test_empty_slots_are_not_looked_at(system):
  """Whatever lies in it, an empty slot changes nothing; so every count is one compiled step."""
  other, noise = PICTURE[::-1].copy(), 255 - PICTURE
  plain = play(system, [(PICTURE, 0, 0)])
  np.testing.assert_array_equal(plain, play(system))
  np.testing.assert_array_equal(plain, play(system, [(PICTURE, 0, 0), (noise, -1, 0)]))
  assert (plain != play(system, [(PICTURE, 0, 0), (other, 2, 1)])).any()
  assert system.performer.compiled_steps() == 1


def test_a_clip_that_ends_within_a_chunk_is_cut(system):
  np.testing.assert_array_equal(play(system, frames=17), play(system)[:17])
  assert play(system, frames=1).shape == (1, *PICTURE.shape)


def test_a_text_comes_with_the_next_chunk(system):
  before, after = play(system), play(system, texts=((0.0, "calm"), (0.9, "yawns widely")))
  np.testing.assert_array_equal(before[:25], after[:25])
  assert (before[25:] != after[25:]).any()


def test_too_many_references_are_named(system):
  with pytest.raises(ValueError, match="references: found 14, expected at most 13"):
    play(system, [(PICTURE, 0, 0)] * 14)


def test_a_chunk_that_is_not_finite_is_held(system, monkeypatch):
  step, made = system.performer.step, itertools.count()

  def broken(*args):
    state, frames, _ = step(*args)
    return state, frames, next(made) != 1

  monkeypatch.setattr(system.performer, "step", broken)
  video = play(system)
  assert (video[13:25] == video[12]).all() and (video[25:] != video[12]).any()


@pytest.fixture
def config(tmp_path, clips, monkeypatch):
  suites = {"heldout": [beginning(clip) for clip in clips[:2]]}
  monkeypatch.setattr(suite, "build_suites", lambda **_: suites)
  monkeypatch.setattr(probe_task, "own_error", lambda *_: {})  # draws at another size
  save(tmp_path / "base", base=make_lpm(1), vae=make_vae(), probe=awake(make_probe, 0))
  for name, seed in (("ode", 5), ("dmd", 7)):
    save(tmp_path / name, backbone=make_lpm(seed), refiner=make_lpm(seed + 1))
  c = recipe.get_config(f"quick,ode={tmp_path / 'ode'},dmd={tmp_path / 'dmd'}")
  c.weights = c.probe_weights = str(tmp_path / "base")
  c.generation.steps, c.generation.references = 1, SLOTS
  c.probe_characters, c.shown, c.suites.frames = 1, 1, FRAMES
  causal = SETTINGS.causal
  c.stream.causal = dict(frames=causal.frames, sink=causal.sink, window=causal.window)
  return c


def test_streams_stand_beside_base(tmp_path, config, system):
  workdir = tmp_path / "evaluation"
  run.evaluate(config, str(workdir))
  results = json.loads((workdir / "results.json").read_text())
  systems, names = results["systems"], ["render", "vae", "model", "ode", "dmd", "still"]
  assert list(systems) == names
  assert systems["ode"]["heldout"]["psnr"] != systems["dmd"]["heldout"]["psnr"]
  assert set(systems["dmd"]["by_style"]) == set(systems["model"]["by_style"])
  assert systems["dmd"]["cost"] == cost.stream_cost(SETTINGS, 24.0)
  assert all(systems[name]["heldout"]["seam_index"] > 0 for name in names[:-1])
  assert systems["still"]["heldout"]["seam_index"] is None
  assert set(results["retention"][0]["kept"]) == {"ode", "dmd"}
  html = (workdir / "report.html").read_text()
  assert all(f"<th>{head}</th>" in html for head in ("ode", "dmd", "dmd keeps"))
  assert html.count("<span>dmd</span>") == 1 and "evaluations a second of video" in html
  assert system.performer.compiled_steps() == 1  # for all streams of these sizes


def test_a_stream_without_backbone_and_base_is_named(tmp_path, config):
  (tmp_path / "empty").mkdir()
  config.online.dmd = str(tmp_path / "empty")
  with pytest.raises(shipped.WeightsError, match="empty: no weights of a stream: found neither"):
    run.evaluate(config, str(tmp_path / "evaluation"))


def test_a_stream_has_a_name_of_its_own(tmp_path, config):
  config.online = dict(vae=str(tmp_path / "dmd"))
  with pytest.raises(ValueError, match="online: 'vae' is the name of another system"):
    run.evaluate(config, str(tmp_path / "evaluation"))


def test_without_folders_the_stream_is_that_of_the_weights(tmp_path):
  save(tmp_path, backbone=make_lpm(5), vae=make_vae())
  config = recipe.get_config("quick")
  config.weights, config.systems = str(tmp_path), ("render", "online")
  assert list(run.load_systems(config)) == ["render", "online"]


def test_folders_of_streams(tmp_path):
  save(tmp_path / "base", base=make_lpm(1), vae=make_vae())
  save(tmp_path / "stage", base=make_lpm(1), backbone=make_lpm(5), refiner=make_lpm(6))
  assert loading.load_stream(tmp_path / "base").refiner is None
  models = loading.load_stream(tmp_path / "stage", vae=tmp_path / "base")
  for found, seed in ((models.lpm.transformer, 5), (models.refiner, 6)):
    wanted = make_lpm(seed).transformer
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(wanted))
  with pytest.raises(shipped.WeightsError, match="stage/vae.safetensors"):
    loading.load_stream(tmp_path / "stage")


def test_a_refiner_of_other_latents_is_named(tmp_path):
  save(tmp_path, backbone=make_lpm(5), vae=make_vae())
  sizes = dataclasses.replace(SIZES, transformer=dataclasses.replace(SIZES.transformer, channels=4))
  config = dataclasses.asdict(sizes)
  shipped.save_module(tmp_path / "refiner.safetensors", make_lpm(6, sizes), config=config)
  with pytest.raises(shipped.WeightsError, match="refiner.safetensors: channels: found 4, expect"):
    loading.load_stream(tmp_path)


def test_evaluations_are_counted():
  """73 frames in one window of Base, 20 guided steps; chunks of a second and of half a second."""
  base = cost.generation_cost(GenerateSettings(steps=20), 73, 24.0)
  assert base["evaluations_per_second"] == pytest.approx(60 * 24 / 73)
  plain = GenerateSettings(steps=20, text_guidance=1.0, audio_guidance=1.0)
  assert cost.generation_cost(plain, 73, 24.0)["evaluations_per_frame"] == 20
  assert cost.stream_cost(StreamSettings(), 24.0) == {
    "evaluations_per_second": 3,
    "evaluations_per_frame": 3,
    "cache_passes_per_second": 2,
  }
  short = StreamSettings(ChunkCausal(frames=3), history=None)
  assert cost.stream_cost(short, 24.0)["evaluations_per_second"] == 6
  assert cost.stream_cost(short, 24.0)["cache_passes_per_second"] == 2
