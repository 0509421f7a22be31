"""Trajectories of a frozen teacher: what the causal backbone learns first (LPM 1.0, ODE init).

For every clip the teacher's probability-flow ODE is solved from noise, under guidance, by first
order on one shifted grid, and the points at a few levels are stored with the clip. The student
predicts the last point from each of the others.

Shards are sharded over processes, resumable (one that exists is whole and stays), and each process
uses the devices it has itself: nothing is exchanged, and any number of processes can go on.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.clip import ClipError, EncodedClip, Trajectory, latent_frames
from data_pipelines.features import FrozenEncoders, load_encoders
from data_pipelines.loader import ExampleConfig, example_from_clip, stack
from data_pipelines.records import RecordSource, write_records
from lpm_jax.diffusion import flow, solvers
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.distillation.networks import forced_velocity
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.parallel import layout
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import BATCH_AXES, Placement, Rules, shard_batch
from lpm_jax.training.base import complete
from lpm_jax.training.samples import encode_window
from lpm_jax.weights import loading, shipped

TEACHERS = ("bidirectional", "causal")
SETTINGS_FILE = "trajectories.json"
_NOISE, _HISTORY = range(2)  # what a clip's key is folded with


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
  """How trajectories are made.

  Attributes:
    levels: timesteps of the points, falling from 1; 0 is added where it is missing.
    steps: Euler steps. The grid contains the levels, see `solvers.grid_through`.
    shift: the one timestep shift, that of the teacher's training.
    text_guidance, audio_guidance: strengths; 1 and 1 need a third of the work.
    causal: latents of a chunk, for a causal teacher also sink and window.
    chunks: chunks after the picture; clips that are shorter are left out, longer ones cut.
    slots: reference slots; a clip's references fill as many as they can.
    teacher: "bidirectional": the whole window at once. "causal": each chunk sees itself and, of the
      chunks before it, the clip's own latents, as a causal model is trained (teacher forcing).
    history: timestep of those latents, in [0, 1).
    seed: of the noise and of the order of references.
  """

  levels: tuple[float, ...] = (1.0, 0.757, 0.522, 0.0)
  steps: int = 40
  shift: float = 2.5
  text_guidance: float = 1.5
  audio_guidance: float = 1.5
  causal: ChunkCausal = ChunkCausal()
  chunks: int = 3
  slots: int = 6
  teacher: str = "bidirectional"
  history: float = 0.1
  seed: int = 0

  def __post_init__(self):
    levels = tuple(map(float, self.levels))
    falling = all(a > b for a, b in zip(levels, levels[1:], strict=False))
    if not levels or levels[0] != 1.0 or not falling or levels[-1] < 0.0:
      raise ValueError(f"levels: found {levels}, expected timesteps in [0, 1] that fall from 1")
    object.__setattr__(self, "levels", levels if levels[-1] == 0.0 else (*levels, 0.0))
    if not self.shift > 0.0:
      raise ValueError(f"shift: found {self.shift}, expected a positive number")
    if self.chunks < 1 or self.slots < 0:
      raise ValueError(
        f"chunks, slots: found {self.chunks}, {self.slots}, expected at least 1 and 0"
      )
    if self.teacher not in TEACHERS:
      raise ValueError(f"teacher: found {self.teacher!r}, expected one of {TEACHERS}")
    if not 0.0 <= self.history < 1.0:
      raise ValueError(f"history: found {self.history}, expected a timestep in [0, 1)")
    self.times()

  @property
  def latents(self) -> int:
    """Latent frames of a trajectory: the picture and whole chunks."""
    return 1 + self.chunks * self.causal.frames

  def times(self) -> np.ndarray:
    """Grid of the solver, fp64 [steps + 1]."""
    return solvers.grid_through(self.levels, self.steps, self.shift)

  def cut(self, text_length: int) -> ExampleConfig:
    """The clip from its beginning, with all the references that find a slot."""
    every = dict(global_reference=1.0, extra_references=1.0, filled=1.0)
    return ExampleConfig(self.latents, self.slots, text_length, **every)


class CausalTeacher:
  """An LPM that makes chunks after given ones: noisy latents in, their velocity out.

  Args:
    model: the weights.
    history: the clip's latents [B, F, H, W, C], noised to `level`.
    level: timesteps of the history [B, F].
    causal: chunks, sink and window.
  """

  def __init__(self, model: LPM, history: Array, level: Array, causal: ChunkCausal):
    self._model, self._history, self._level, self._causal = model, history, level, causal
    self.null_text, self.null_audio = model.null_text, model.null_audio

  def __call__(self, latents: Array, timestep: Array, conditions: Conditions) -> Array:
    """Velocity [n B, F, H, W, C]; under guidance the batch is there n times."""
    times = len(latents) // len(self._history)
    history = jnp.tile(self._history, (times, 1, 1, 1, 1))
    level, model = jnp.tile(self._level, (times, 1)), self._model.transformer
    return forced_velocity(model, self._causal, history, level, latents, timestep, conditions)


def clip_noise(seed: int, index: Array, purpose: int, shape: Sequence[int]) -> Array:
  """Standard normal [B, *shape] of clips by their index int32 [B], in whatever batch they are."""
  key = jax.random.key(seed)

  def of_clip(i: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), purpose), shape)

  return jax.vmap(of_clip)(index)


def trajectory_points(
  model: LPM, batch: dict[str, Array], index: Array, settings: TrajectorySettings
) -> Array:
  """Points of a batch of `loader.example_from_clip`, fp32 [P, B, F, H, W, C]; the picture is clean.

  Args:
    model: the teacher.
    batch: windows of `settings.latents` from the beginning of their clips.
    index: int32 [B], of each clip in the data; its noise depends on it and the seed alone.
    settings: levels, grid, guidance and kind of teacher.
  """
  latents = batch["latents"].astype(jnp.float32)
  conditions = encode_window(model, batch)
  picture = jnp.broadcast_to(jnp.arange(latents.shape[1]) < 1, latents.shape[:2])
  noise = clip_noise(settings.seed, index, _NOISE, latents.shape[1:])
  teacher = model
  if settings.teacher == "causal":
    level = jnp.where(picture, 0.0, settings.history)
    other = clip_noise(settings.seed, index, _HISTORY, latents.shape[1:])
    history = flow.add_noise(latents, other, level)
    teacher = CausalTeacher(model, history, level, settings.causal)
  velocity = guided_velocity(teacher, conditions, settings.text_guidance, settings.audio_guidance)
  times = settings.times()
  return solvers.euler_points(velocity, noise, latents, picture, times, settings.levels)


def shares_of(mesh: Mesh) -> int:
  """Over how many parts of a mesh the clips of a batch lie."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


class Teacher:
  """`trajectory_points` on the devices of a mesh, compiled once.

  Each share of the mesh has one clip at a time: a clip's bits do not depend on its neighbours or on
  the size of the batch, and the three branches of guidance fill a device as it is.

  Args:
    model: the frozen weights.
    settings: how trajectories are made.
    mesh: clips lie apart over data and fsdp.
    rules: mesh axes of parameters, `config.sharding.rules`.
  """

  def __init__(self, model: LPM, settings: TrajectorySettings, mesh: Mesh, rules: Rules):
    graphdef, state = nnx.split(model)
    self._mesh, self._rules, shares = mesh, dict(rules), shares_of(mesh)
    self._state = Placement(mesh, tuple(self._rules.items())).put_module(state)

    def parted(x: Array) -> Array:  # strided, so that nothing moves between devices
      return jnp.moveaxis(x.reshape(shares, -1, *x.shape[1:]), 1, 0)

    @jax.jit
    def run(state: nnx.State, batch: dict[str, Array], index: Array) -> Array:
      def part(rows: tuple[dict[str, Array], Array]) -> Array:
        points = trajectory_points(nnx.merge(graphdef, state), *rows, settings)
        return jnp.moveaxis(points, 0, 1).astype(jnp.float16)

      made = jax.lax.map(part, jax.tree.map(parted, (batch, index)))
      return jnp.moveaxis(made, 0, 1).reshape(-1, *made.shape[2:])

    self._run = run

  def __call__(self, batch: dict[str, np.ndarray], index: np.ndarray) -> Array:
    """float16 [B, P, F, H, W, C] of clips by their index int32 [B]; does not wait for it."""
    batch = shard_batch({**batch, "index": index}, self._mesh)
    index = batch.pop("index")
    with jax.set_mesh(self._mesh), layout.in_force(stored=self._rules):
      return self._run(self._state, batch, index)


def write_trajectories(config: ConfigDict, workdir: str | os.PathLike):
  """`lpm distill` of the task "trajectories": a record with `trajectory` for every clip.

  Writes workdir/NNNNN-of-NNNNN.array_record, `config.clips_per_shard` clips each, and
  workdir/trajectories.json; process p of n writes the shards p, p + n, ...

  Args:
    config: `trajectory` (fields of TrajectorySettings), `weights` and `weights_name` (a folder and
      the file in it), `data.path`, `batch_size` (per process), `clips_per_shard`, `sharding` (mesh
      over the devices of a process, rules), and optionally `frozen`, as in training.
    workdir: folder that is written.

  Raises:
    ValueError: settings that make no sense, weights that do not fit the clips, a folder that was
      made with other settings; the setting is named.
    ClipError: no clip is long enough, or a record cannot be read.
  """
  settings = shipped.config_from_dict(TrajectorySettings, config.trajectory.to_dict())
  mesh = make_mesh(config.sharding.mesh, devices=jax.local_devices())
  shares = shares_of(mesh)
  if config.batch_size < 1 or config.batch_size % shares:
    raise ValueError(f"batch_size: found {config.batch_size}, expected a multiple of {shares}")
  if config.clips_per_shard < 1:
    raise ValueError(f"clips_per_shard: found {config.clips_per_shard}, expected at least 1")
  source = RecordSource(config.data.path)
  usable = usable_clips(source, settings.latents, str(config.data.path))
  path = shipped.weights_file(config.weights, config.weights_name)
  made_with = {
    "trajectory": dataclasses.asdict(settings),
    "weights": {"path": str(path), "hash": _fingerprint(path)},
    "data": {"path": config.to_dict()["data"]["path"], "clips": len(source)},
    "clips_per_shard": config.clips_per_shard,
  }
  _check_folder(pathlib.Path(workdir), made_with)
  with _on_host():
    model = loading.load_base(config.weights, config.weights_name)
  frozen = load_encoders(config.frozen) if config.get("frozen") else None
  read = _Reader(source, model.config, settings, frozen, str(path))
  read(int(usable[0]))  # what does not fit is found before anything is written
  teacher = Teacher(model, settings, mesh, config.sharding.rules)
  _write_settings(pathlib.Path(workdir), made_with)
  starts = range(0, len(usable), config.clips_per_shard)
  missing = {}
  for shard in range(jax.process_index(), len(starts), jax.process_count()):
    file = pathlib.Path(workdir) / f"{shard:05d}-of-{len(starts):05d}.array_record"
    if not file.exists():
      missing[file] = usable[starts[shard] : starts[shard] + config.clips_per_shard]
  with tqdm(total=sum(map(len, missing.values())), desc="trajectories", unit="clip") as bar:
    for file, clips in missing.items():
      write_records(file, _made(teacher, read, clips, config.batch_size, bar))
  if jax.process_count() > 1:  # the first to leave would take the coordinator along
    sync_global_devices("trajectories")


def read_settings(folder: str | os.PathLike) -> TrajectorySettings:
  """How the trajectories of a folder were made. Raises ValueError where that is not said."""
  path = pathlib.Path(folder) / SETTINGS_FILE
  try:
    values = json.loads(path.read_text())["trajectory"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: not the settings of trajectories: {error!r}") from error
  return shipped.config_from_dict(TrajectorySettings, values)


def usable_clips(source: RecordSource, latents: int, where: str) -> np.ndarray:
  """Indices int64 of the clips with so many latents; those left out are counted and named in a log.

  Raises ClipError where none is left, or clips are not encoded.
  """
  index = source.index()
  if not index.dtypes:
    raise ClipError(f"{where}: latents: found none, expected clips of `lpm data encode`")
  found = np.array([latent_frames(int(frames)) for frames in index.states.sum(axis=1)])
  short = np.flatnonzero(found < latents)
  if len(short) == len(found):
    raise ClipError(
      f"{where}: latents: found {found.max()} frames in the longest clip, expected at least "
      f"{latents}"
    )
  if len(short):
    named = ", ".join(repr(source[int(i)].clip_id) for i in short[:10])
    more = ", ..." if len(short) > 10 else ""
    text = "%s: %d of %d clips are shorter than %d latents and left out: %s%s"
    logging.warning(text, where, len(short), len(found), latents, named, more)
  return np.flatnonzero(found >= latents)


class _Reader:
  """Clip by index -> the clip with its features, and its example."""

  def __init__(
    self,
    source: RecordSource,
    model: LPMConfig,
    settings: TrajectorySettings,
    frozen: FrozenEncoders | None,
    weights: str,
  ):
    self._source, self._model, self._frozen = source, model, frozen
    self._seed, self._cut, self._weights = settings.seed, settings.cut(model.text.length), weights

  def __call__(self, index: int) -> tuple[EncodedClip, dict[str, np.ndarray]]:
    clip = self._source[index]
    if self._frozen:
      clip = self._frozen.added(clip)
    self._check(clip)
    rng = np.random.default_rng((self._seed, index))
    return clip, complete(example_from_clip(clip, rng, self._cut), clip, self._model)

  def _check(self, clip: EncodedClip):
    """Raises ValueError for a clip that the weights were not trained on."""
    trunk, text, audio = self._model.transformer, self._model.frozen_text, self._model.frozen_audio
    height, width, channels = clip.latents.shape[1:]
    heard = (audio.layers + 1, audio.width) if audio else None
    wanted = [
      ("latents", "channels", channels, trunk.channels),
      ("latents", "fps", clip.fps, self._model.audio.fps),
      ("latents", f"{height} x {width}, beyond whole patches",
       (height % trunk.patch[0], width % trunk.patch[1]), (0, 0)),
    ]  # fmt: skip
    if text and clip.text_features is not None:
      wanted.append(("text_features", "width", clip.text_features.shape[1], text.width))
    for name in ("speak_features", "listen_features"):
      if audio and getattr(clip, name) is not None:
        wanted.append((name, "layers and width", getattr(clip, name).shape[1:], heard))
    for field, what, found, expected in wanted:
      if found != expected:
        raise ValueError(
          f"{self._weights}: {field} of clip {clip.clip_id!r} in {clip.file} do not fit: {what}: "
          f"found {found}, expected {expected}"
        )


def _made(
  teacher: Teacher, read: _Reader, indices: np.ndarray, size: int, bar: tqdm
) -> Iterator[Trajectory]:
  """Trajectories of clips, in order. The next batch is read while devices work on the one before.

  The last batch is filled up with its last clip: one shape, one program.
  """

  def finished(clips: Sequence[EncodedClip], points: Array) -> Iterator[Trajectory]:
    for clip, of_clip in zip(clips, np.asarray(points), strict=False):
      yield Trajectory.of(clip, of_clip)
      bar.update()

  running = None
  for first in range(0, len(indices), size):
    chosen = indices[first : first + size]
    clips, examples = zip(*(read(int(i)) for i in chosen), strict=True)
    filling = size - len(chosen)
    index = np.concatenate([chosen, np.repeat(chosen[-1:], filling)]).astype(np.int32)
    points = teacher(stack([*examples, *[examples[-1]] * filling]), index)
    if running:
      yield from finished(*running)
    running = clips, points
  yield from finished(*running)


def _on_host() -> contextlib.AbstractContextManager:
  """Weights are read into the host's memory, where JAX has it, and lie apart on devices later."""
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return contextlib.nullcontext()


def _fingerprint(path: pathlib.Path, blocks: int = 64, length: int = 1 << 16) -> str:
  """A hash of a file's size and of blocks spread over it: enough to tell trained weights apart."""
  size = path.stat().st_size
  found = hashlib.sha256(str(size).encode())
  with open(path, "rb") as file:
    for start in np.linspace(0, max(0, size - length), blocks).astype(np.int64):
      file.seek(int(start))
      found.update(file.read(length))
  return found.hexdigest()[:16]


def _check_folder(folder: pathlib.Path, made_with: dict):
  """Raises ValueError when the folder holds trajectories made otherwise."""
  path = folder / SETTINGS_FILE
  if not path.exists():
    if list(folder.glob("*.array_record")):
      raise ValueError(f"{folder}: found records without {SETTINGS_FILE}, expected a new folder")
    return
  read_settings(folder)
  known, wanted = _flat(json.loads(path.read_text())), _flat(json.loads(json.dumps(made_with)))
  for name in sorted(known | wanted):
    if known.get(name) != wanted.get(name):
      raise ValueError(
        f"{path}: {name}: the folder was made with {known.get(name)}, the config has "
        f"{wanted.get(name)}: take another workdir"
      )


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
  flat = {}
  for name, value in values.items():
    nested = isinstance(value, dict)
    flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
  return flat


def _write_settings(folder: pathlib.Path, made_with: dict):
  """Writes the settings, whole or not at all; the first process to come does."""
  if (folder / SETTINGS_FILE).exists():  # and is the same
    return
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f".{SETTINGS_FILE}.{jax.process_index()}.{os.getpid()}.tmp"
  try:
    temporary.write_text(json.dumps(made_with, indent=1) + "\n")
    os.replace(temporary, folder / SETTINGS_FILE)
  finally:
    temporary.unlink(missing_ok=True)
