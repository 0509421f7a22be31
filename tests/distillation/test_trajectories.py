"""Trajectories: what is stored lies on the solver's way, and does not depend on how it was run."""

import dataclasses
import functools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs.lpm_17b import online_trajectories as large
from configs.puppets import online_trajectories as puppets
from data_pipelines import records
from data_pipelines.clip import ClipError, EncodedClip, Trajectory, audio_samples
from data_pipelines.loader import ExampleConfig, example_from_clip, stack, trajectory_example
from lpm_jax import cli
from lpm_jax.diffusion import flow, solvers
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.distillation import shards, trajectories
from lpm_jax.distillation.trajectories import TrajectorySettings, trajectory_points
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.training import loop
from lpm_jax.training.samples import encode_window
from lpm_jax.weights.shipped import save_module
from tests.streaming.small import SIZES

LEVELS = (1.0, 0.7, 0.4, 0.0)
TIMES = solvers.timesteps(6, 2.5)
SETTINGS = TrajectorySettings(
  levels=(1.0, float(TIMES[2]), float(TIMES[4]), 0.0),
  steps=6,
  causal=ChunkCausal(frames=2, sink=1, window=1),
  chunks=3,
  slots=2,
)


GUIDED = dataclasses.replace(SETTINGS, teacher="causal", history=0.2)
CAUSAL = dataclasses.replace(GUIDED, text_guidance=1.0, audio_guidance=1.0)


def encoded_clip(index: int, latents: int = 8, channels: int = 2, fps: float = 24.0) -> EncodedClip:
  rng = np.random.default_rng(index)
  frames = 4 * (latents - 1) + 1
  noise = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  names = (f"clip {index}", "p", "anime", "test", "synthetic")
  return EncodedClip(
    *names,
    fps=fps,
    text="smiles",
    latents=noise(latents, 2, 2, channels),
    speak_audio=np.clip(0.1 * noise(audio_samples(frames, fps)), -1, 1),
    listen_audio=np.clip(0.1 * noise(audio_samples(frames, fps)), -1, 1),
    state=np.full(frames, index % 3, np.int8),
    references=noise(3, 2, 2, channels),
    reference_kind=np.array([0, 1, 2], np.int32),
    reference_label=np.array([0, 2, 5], np.int32),
  )


@functools.cache
def model() -> LPM:
  """Random weights, drawn in numpy: to initialise the modules takes ten seconds."""
  lpm, rng = nnx.eval_shape(lambda: LPM(SIZES, rngs=nnx.Rngs(0))), np.random.default_rng(1)
  filled = []
  for path, leaf in nnx.to_flat_state(nnx.state(lpm, nnx.Not(nnx.RngState))):
    values = 0.3 * rng.normal(size=leaf.shape) + ("scale" in path)
    filled.append((path, leaf.replace(jnp.asarray(values, leaf.dtype))))
  nnx.update(lpm, nnx.from_flat_state(filled))
  return lpm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
  """Seven clips in two files, the fourth too short; weights."""
  folder = tmp_path_factory.mktemp("trajectories")
  clips = [encoded_clip(i, latents=4 if i == 3 else 7 + i % 2) for i in range(7)]
  records.write_records(folder / "clips" / "0.array_record", clips[:5])
  records.write_records(folder / "clips" / "1.array_record", clips[5:])
  config = dataclasses.asdict(SIZES)
  save_module(folder / "weights" / "base.safetensors", model(), config=config, dtype="float32")
  return str(folder / "clips"), str(folder / "weights")


def make_config(folders: tuple[str, str]) -> ConfigDict:
  c = puppets.get_config()
  c.data.path, c.weights = folders
  c.batch_size, c.clips_per_shard = 4, 3
  c.trajectory.update(levels=SETTINGS.levels, steps=6, chunks=3, slots=2)
  c.trajectory.causal = dict(frames=2, sink=1, window=1)
  return c


@pytest.fixture
def config(folders: tuple[str, str]) -> ConfigDict:
  return make_config(folders)


@pytest.fixture(scope="module", autouse=True)
def one_teacher():
  """Runs of the same settings share a teacher, which compiles once."""
  with pytest.MonkeyPatch.context() as patch:
    original = trajectories.Teacher
    shared = {}

    def of(model: LPM, settings: TrajectorySettings, mesh, rules):
      if settings not in shared:
        shared[settings] = original(model, settings, mesh, rules)
      return shared[settings]

    patch.setattr(trajectories, "Teacher", of)
    yield


@pytest.fixture(scope="module")
def made(folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The trajectories of `config`."""
  folder = tmp_path_factory.mktemp("made")
  trajectories.write_trajectories(make_config(folders), folder)
  return folder


def batch_of(first: int = 0) -> dict[str, np.ndarray]:
  """Clips `first` and the next one, as a run reads them."""
  rows = [(encoded_clip(i, 7 + i % 2), np.random.default_rng((0, i))) for i in (first, first + 1)]
  return stack([example_from_clip(clip, rng, SETTINGS.cut(16)) for clip, rng in rows])


@functools.cache
def compiled(settings: TrajectorySettings):
  graphdef, state = nnx.split(model())

  @jax.jit
  def run(batch: dict, index: jax.Array) -> jax.Array:
    return trajectory_points(nnx.merge(graphdef, state), batch, index, settings)

  return run


def points_of(settings: TrajectorySettings, batch: dict, first: int = 0) -> np.ndarray:
  return np.asarray(compiled(settings)(batch, first + np.arange(2)))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


# the grid


def test_the_grid_contains_the_levels_in_place_of_the_nearest_times():
  times, plain = solvers.grid_through(LEVELS, 12, 2.5), solvers.timesteps(12, 2.5)
  assert len(times) == 13 and np.all(np.diff(times) < 0)
  assert set(LEVELS) <= set(times)
  moved = np.flatnonzero(times != plain)
  assert list(times[moved]) == [0.7, 0.4]
  for i in moved:
    assert np.abs(plain - times[i]).argmin() == i


def test_a_level_beside_an_end_moves_an_inner_time():
  times = solvers.grid_through((1.0, 0.999, 0.001, 0.0), 4, 1.0)
  np.testing.assert_array_equal(times, [1.0, 0.999, 0.5, 0.001, 0.0])


# the solver


def test_a_step_from_each_point_through_the_grid_reaches_the_next():
  noise = np.random.default_rng(0).normal(size=(2, 3, 1, 1, 2)).astype(np.float32)
  times = solvers.grid_through(LEVELS, 9, 2.5)
  mask = np.zeros((2, 3), bool)

  def velocity(x: np.ndarray, t: np.ndarray) -> np.ndarray:  # of data Normal(0.3, 0.25)
    t = t[:, :, None, None, None]
    rest = x - (1 - t) * 0.3
    return (t - (1 - t) * 0.25) * rest / ((1 - t) ** 2 * 0.25 + t**2) - 0.3

  points = solvers.euler_points(velocity, noise, noise, mask, times, LEVELS)
  np.testing.assert_array_equal(points[0], noise)
  for k in range(3):
    x = np.asarray(points[k], np.float64)
    begin, end = (int(np.flatnonzero(times == level)[0]) for level in LEVELS[k : k + 2])
    for i in range(begin, end):
      x = x + (times[i + 1] - times[i]) * velocity(x, np.full((2, 3), times[i]))
    np.testing.assert_allclose(points[k + 1], x, atol=1e-5)


def test_levels_off_the_grid_are_named():
  with pytest.raises(ValueError, match=r"levels: found \[0\.3\], expected times of the grid"):
    solvers.euler_points(None, None, None, None, np.array([1.0, 0.5, 0.0]), (1.0, 0.3, 0.0))


# teachers


def test_the_last_point_is_what_the_sampler_makes_on_the_same_grid():
  batch = batch_of()
  points = points_of(SETTINGS, batch)
  graphdef, state = nnx.split(model())

  @jax.jit
  def sample(state: nnx.State) -> jax.Array:
    lpm = nnx.merge(graphdef, state)
    velocity = guided_velocity(lpm, encode_window(lpm, batch), 1.5, 1.5)
    given = jnp.arange(7) < jnp.ones((2, 1))
    grid = dict(steps=6, shift=2.5, solver="euler")
    return solvers.sample(velocity, points[0], batch["latents"], given, **grid)

  np.testing.assert_array_equal(SETTINGS.times(), TIMES)
  np.testing.assert_allclose(points[-1], sample(state), atol=1e-5)
  assert np.abs(points[-1] - points[0]).max() > 0.1


@pytest.mark.parametrize("settings", [SETTINGS, GUIDED], ids=lambda settings: settings.teacher)
def test_the_picture_is_clean_in_every_point(settings: TrajectorySettings):
  batch = batch_of()
  points = points_of(settings, batch)
  assert points.shape == (4, 2, 7, 2, 2, 2)
  for point in points:
    np.testing.assert_array_equal(point[:, 0], batch["latents"][:, 0])
  assert np.abs(points[0, 0, 1:] - points[0, 1, 1:]).min() > 0  # noise of each clip's own


def test_a_causal_teacher_is_a_stream_whose_caches_hold_the_clip():
  batch = batch_of()
  points = points_of(CAUSAL, batch)
  lpm = model()
  latents = jnp.asarray(batch["latents"])
  other = trajectories.clip_noise(0, jnp.arange(2), trajectories._HISTORY, latents.shape[1:])
  history = flow.add_noise(latents, other, jnp.full((2, 7), 0.2))
  conditions = jax.jit(lambda batch: encode_window(lpm, batch))(batch)
  trunk = lpm.transformer

  def heard_until(stop: int) -> Conditions:
    tracks = {name: getattr(conditions, name)[:, :stop] for name in ("speak", "listen")}
    return conditions.replace(**tracks)

  @jax.jit
  def chunk(x: jax.Array, heard: Conditions, caches: list, start: jax.Array):
    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
      return trunk.extend(x, jnp.full((2, 2), t), heard, caches, start)[0]

    past = jax.lax.dynamic_slice_in_dim(history, start, 2, axis=1)
    _, kept = trunk.extend(past, jnp.full((2, 2), 0.2), heard, caches, start)
    return solvers.euler(velocity, x, TIMES), kept

  caches = [jax.jit(trunk.remember)(latents[:, :1], heard_until(1))]
  for start in (1, 3):  # the picture, then the chunk before too
    noise = points[0, :, start : start + 2]
    made, kept = chunk(noise, heard_until(start + 2).without_references(), caches, start)
    np.testing.assert_allclose(points[-1, :, start : start + 2], made, atol=1e-4)
    caches.append(kept)


def test_history_of_later_chunks_does_not_reach_a_causal_teacher():
  batch = batch_of()
  changed = {**batch, "latents": batch["latents"].copy()}
  changed["latents"][:, 3:5] += 1.0  # chunk 1
  points, others = points_of(GUIDED, batch), points_of(GUIDED, changed)
  np.testing.assert_array_equal(points[:, :, :5], others[:, :, :5])  # its own included
  assert np.abs(points[1:, :, 5:] - others[1:, :, 5:]).max() > 1e-3


# records


def test_a_record_gives_the_example_of_its_clip_and_the_points(made: pathlib.Path):
  source = records.RecordSource(made)
  assert [record.clip_id for record in source] == [f"clip {i}" for i in (0, 1, 2, 4, 5, 6)]
  cut = ExampleConfig(frames=7, slots=2, text_length=16, extra_references=1.0)
  for record, index in ((source[i], j) for i, j in ((0, 0), (3, 4))):
    example = trajectory_example(record, np.random.default_rng(1), cut)
    clip = encoded_clip(index, 7 + index % 2)
    expected = example_from_clip(clip, np.random.default_rng(1), cut)
    points = example.pop("trajectory")
    assert points.shape == (4, 7, 2, 2, 2) and points.dtype == np.float16
    np.testing.assert_array_equal(points[:, 0], [clip.latents[0].astype(np.float16)] * 4)
    for name, value in expected.items():
      np.testing.assert_array_equal(example[name], value)
  assert source.index().dtypes == ("float32",)


def test_the_points_are_those_of_each_clip_with_all_its_references(made: pathlib.Path):
  source, batch = records.RecordSource(made), batch_of(4)
  assert np.all(batch["reference_kind"] >= 0)
  expected = points_of(SETTINGS, batch, first=4)
  for row in range(2):
    np.testing.assert_allclose(source[3 + row].trajectory, expected[:, row], atol=5e-3)


def test_the_folder_says_how_it_was_made(made: pathlib.Path):
  assert trajectories.read_settings(made) == SETTINGS
  assert json.loads((made / "trajectories.json").read_text())["data"]["clips"] == 7
  assert not list(made.glob("*.tmp"))


def test_the_same_bits_in_other_batches_and_by_other_processes(
  config: ConfigDict, made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  config.batch_size = 2
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(shards, "sync_global_devices", lambda name: None)
  for process in (1, 0):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    trajectories.write_trajectories(config, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.array_record"))
    assert len(names) == 2 - process
  assert contents(tmp_path) == contents(made)


class Killed(BaseException):
  """Nothing catches it."""


def test_a_killed_run_goes_on_with_what_is_missing(
  config: ConfigDict, made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  read = records.RecordSource.__getitem__

  def until_killed(source: records.RecordSource, index: int) -> EncodedClip:
    if index == 5:
      raise Killed
    return read(source, index)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(records.RecordSource, "__getitem__", until_killed)
    trajectories.write_trajectories(config, tmp_path)
  first = tmp_path / "00000-of-00002.array_record"
  assert [first] == list(tmp_path.glob("*.array_record")) and not list(tmp_path.glob(".*"))
  before = first.stat()
  trajectories.write_trajectories(config, tmp_path)
  assert first.stat() == before
  assert contents(tmp_path) == contents(made)


def test_a_clip_that_is_too_short_is_counted_and_named(
  config: ConfigDict, caplog: pytest.LogCaptureFixture
):
  with caplog.at_level(logging.WARNING, logger="absl"):
    found = shards.usable_clips(records.RecordSource(config.data.path), 7, "data")
  assert list(found) == [0, 1, 2, 4, 5, 6]
  assert "1 of 7 clips are shorter than 7 latents and left out: 'clip 3'" in caplog.text


# errors


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(levels=(0.9, 0.5, 0.0)), r"levels: found \(0.9, 0.5, 0.0\), expected .* fall from 1"),
    (dict(levels=(1.0, 0.4, 0.7)), "levels: .*fall from 1"),
    (dict(levels=(1.0, 0.4, 0.4, 0.0)), "levels: .*fall from 1"),
    (dict(levels=(1.0, 0.4, -0.1)), r"levels: .*in \[0, 1\]"),
    (dict(levels=()), "levels"),
    (dict(levels=(1.0, 0.71, 0.7, 0.0)), "steps: found 6, too few to part the levels"),
    (dict(steps=1), "steps: found 1, expected at least 3"),
    (dict(steps=0), "steps: found 0"),
    (dict(shift=0.0), "shift: found 0.0"),
    (dict(chunks=0), "chunks, slots: found 0, 2"),
    (dict(teacher="kind"), "teacher: found 'kind', expected one of"),
    (dict(history=1.0), "history: found 1.0"),
  ],
)
def test_settings_that_make_no_sense_are_named(fields: dict, message: str):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SETTINGS, **fields)


def test_zero_is_added_to_the_levels():
  assert dataclasses.replace(SETTINGS, levels=(1.0, 0.5)).levels == (1.0, 0.5, 0.0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(trajectory=dict(shift=3.0)), r"trajectory.shift: the folder was made with 2.5, .* 3.0"),
    (
      dict(trajectory=dict(levels=(1.0, 0.0))),
      r"trajectory.levels: .* \[1.0, 0.8\d*, 0.5\d*, 0.0\]",
    ),
    (dict(trajectory=dict(teacher="causal")), "trajectory.teacher: .* bidirectional"),
    (dict(clips_per_shard=4), "clips_per_shard: the folder was made with 3"),
    (dict(batch_size=0), "batch_size: found 0, expected a multiple of 1"),
    (dict(trajectory=dict(chunks=4)), "latents: found 8 frames .*, expected at least 9"),
    (dict(trajectory=dict(schift=3.0)), "unknown fields .*schift"),
    (dict(weights_name="backbone"), "backbone.safetensors: no such weights file"),
  ],
)
def test_a_folder_keeps_to_its_settings(
  config: ConfigDict, made: pathlib.Path, change: dict, message: str
):
  before = contents(made)
  with config.unlocked(), config.ignore_type():
    config.update(change)
  with pytest.raises(ValueError, match=message):
    trajectories.write_trajectories(config, made)
  assert contents(made) == before


def test_other_weights_under_the_same_name_are_other_settings(
  config: ConfigDict, made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(shards, "fingerprint", lambda path: "another")
  with pytest.raises(ValueError, match="weights.hash: the folder was made with"):
    trajectories.write_trajectories(config, made)


def test_records_that_are_no_trajectories_are_left_alone(config: ConfigDict):
  with pytest.raises(ValueError, match=r"records without trajectories.json, expected a new folder"):
    trajectories.write_trajectories(config, config.data.path)


@pytest.mark.parametrize(
  ("clips", "error", "message"),
  [
    ([encoded_clip(0, channels=4)], ValueError, "latents of clip 'clip 0' .*found 4, expected 2"),
    ([encoded_clip(0, fps=25.0)], ValueError, "latents of clip .* fps: found 25.0, expected 24"),
    ([encoded_clip(0, latents=6)], ClipError, "found 6 frames in the longest clip, .* least 7"),
  ],
)
def test_clips_that_do_not_fit_leave_nothing(
  config: ConfigDict, tmp_path: pathlib.Path, clips: list, error: type, message: str
):
  records.write_records(tmp_path / "clips" / "0.array_record", clips)
  config.data.path = str(tmp_path / "clips")
  with pytest.raises(error, match=message):
    trajectories.write_trajectories(config, tmp_path / "made")
  assert not (tmp_path / "made").exists()


def test_a_damaged_record_is_named_and_leaves_no_half_shard(
  config: ConfigDict, tmp_path: pathlib.Path
):
  path = tmp_path / "clips" / "0.array_record"
  records.write_records(path, [encoded_clip(i) for i in range(4)])
  whole = bytearray(path.read_bytes())
  place = whole.index(b'\\"clip 3\\"')
  whole[place + 200 : place + 220] = bytes(20)
  path.write_bytes(whole)
  config.data.path = str(path)
  with pytest.raises(ClipError, match=f"{path}: record 3 cannot be read"):
    trajectories.write_trajectories(config, tmp_path / "made")
  assert sorted(contents(tmp_path / "made")) == [
    "00000-of-00002.array_record",
    "00000-of-00002.index.json",
    "trajectories.json",
  ]


@pytest.mark.parametrize(
  ("points", "message"),
  [
    (np.zeros((2, 8, 2, 2, 2), np.float32), "dtype float32, expected float16 or bfloat16"),
    (np.zeros((2, 8, 2, 2, 3), np.float16), "shape"),
    (np.zeros((1, 8, 2, 2, 2), np.float16), "1 points, expected at least 2"),
    (np.zeros((2, 9, 2, 2, 2), np.float16), "9 frames, expected 1 to 8"),
    (np.full((2, 8, 2, 2, 2), np.inf, np.float16), "not finite"),
  ],
)
def test_a_wrong_trajectory_is_named(points: np.ndarray, message: str):
  with pytest.raises(ClipError, match=f"clip 'clip 0': trajectory: found .*{message}"):
    Trajectory.of(encoded_clip(0), points)


def test_an_example_needs_a_trajectory_as_long_as_its_window():
  rng, points = np.random.default_rng(0), np.zeros((2, 5, 2, 2, 2), np.float16)
  record = Trajectory.of(encoded_clip(0), points)
  cut = ExampleConfig(frames=4, slots=1, text_length=4)
  assert trajectory_example(record, rng, cut)["trajectory"].shape == (2, 4, 2, 2, 2)
  with pytest.raises(ClipError, match="'clip 0': trajectory: found 5 frames, expected at least 7"):
    trajectory_example(record, rng, dataclasses.replace(cut, frames=7))
  with pytest.raises(ValueError, match="random_start: found 0.0, 1.0, expected 0"):
    trajectory_example(record, rng, dataclasses.replace(cut, random_start=1.0))
  with pytest.raises(ClipError, match="'clip 0': trajectory: missing"):
    trajectory_example(encoded_clip(0), rng, cut)


# the verb


def test_the_verb_makes_trajectories_or_trains(
  config: ConfigDict, made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  cli.distill(config, str(tmp_path))
  assert contents(tmp_path) == contents(made)
  trained = []
  monkeypatch.setattr(loop, "train", lambda config, workdir, **_: trained.append(config.task))
  cli.distill(ConfigDict(dict(task="base")), str(tmp_path))
  assert trained == ["base"]


@pytest.mark.parametrize("recipe", [puppets, large])
def test_the_recipes_are_settings(recipe):
  c = recipe.get_config()
  settings = TrajectorySettings(
    **{**c.trajectory.to_dict(), "causal": ChunkCausal(**c.trajectory.causal)}
  )
  assert settings.latents in (19, 31) and settings.levels == (1.0, 0.757, 0.522, 0.0)
  with pytest.raises(ValueError, match=":huge"):
    recipe.get_config("huge")
