"""Folders of records that a model makes of clips: sharded over processes, and resumable.

A shard that exists is whole and stays. Each process uses the devices it has itself: nothing is
exchanged, and any number of processes can go on. A folder says how it was made in a JSON file, and
what was made otherwise is refused.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

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

from data_pipelines.clip import ClipError, EncodedClip, latent_frames
from data_pipelines.features import FrozenEncoders, load_encoders
from data_pipelines.loader import ExampleConfig, example_from_clip, stack
from data_pipelines.records import RecordSource, write_records
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.parallel import layout
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import BATCH_AXES, Placement, Rules, shard_batch
from lpm_jax.training.base import complete
from lpm_jax.weights import loading, shipped

Example = dict[str, np.ndarray]


def clip_noise(seed: int, index: Array, purpose: int | Array, shape: Sequence[int]) -> Array:
  """Standard normal [B, *shape] of clips by their index int32 [B], in whatever batch they are."""
  key = jax.random.key(seed)

  def of_clip(i: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), purpose), shape)

  return jax.vmap(of_clip)(index)


def shares_of(mesh: Mesh) -> int:
  """Over how many parts of a mesh the clips of a batch lie."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


class PerClip:
  """What a frozen model makes of clips, on the devices of a mesh, compiled once.

  Each share of the mesh has one clip at a time: a clip's bits do not depend on its neighbours or on
  the size of the batch, and the three branches of guidance fill a device as it is.

  Args:
    model: the frozen weights.
    make: (model, batch, index) -> [B, ...] of a batch of `loader.example_from_clip` and the index
      int32 [B] of its clips in the data.
    mesh: clips lie apart over data and fsdp.
    rules: mesh axes of parameters, `config.sharding.rules`.
  """

  def __init__(
    self,
    model: LPM,
    make: Callable[[LPM, dict[str, Array], Array], Array],
    mesh: Mesh,
    rules: Rules,
  ):
    graphdef, state = nnx.split(model)
    self._mesh, self._rules, shares = mesh, dict(rules), shares_of(mesh)
    self._state = Placement(mesh, tuple(self._rules.items())).put_module(state)

    def parted(x: Array) -> Array:  # strided, so that nothing moves between devices
      return jnp.moveaxis(x.reshape(shares, -1, *x.shape[1:]), 1, 0)

    @jax.jit
    def run(state: nnx.State, batch: dict[str, Array], index: Array) -> Array:
      def part(rows: tuple[dict[str, Array], Array]) -> Array:
        return make(nnx.merge(graphdef, state), *rows).astype(jnp.float16)

      made = jax.lax.map(part, jax.tree.map(parted, (batch, index)))
      return jnp.moveaxis(made, 0, 1).reshape(-1, *made.shape[2:])

    self._run = run

  def __call__(self, batch: Example, index: np.ndarray) -> Array:
    """float16 [B, ...] of clips by their index int32 [B]; does not wait for it."""
    batch = shard_batch({**batch, "index": index}, self._mesh)
    index = batch.pop("index")
    with jax.set_mesh(self._mesh), layout.in_force(stored=self._rules):
      return self._run(self._state, batch, index)


@dataclasses.dataclass(frozen=True)
class Work:
  """What a run makes of clips.

  Attributes:
    settings_file: the JSON file that says how a folder was made.
    about: its first entries; model, data and size of the shards follow.
    label: of the progress bar.
    latents: frames that a clip has to have.
    cut: the example that the model sees of a clip.
    seed: of the order of references.
    maker: (model, mesh) -> what makes the arrays.
    record: (clip, its example, its array) -> the record that is written.
  """

  settings_file: str
  about: dict
  label: str
  latents: int
  cut: Callable[[LPMConfig], ExampleConfig]
  seed: int
  maker: Callable[[LPM, Mesh], PerClip]
  record: Callable[[EncodedClip, Example, np.ndarray], EncodedClip]


def write_made(config: ConfigDict, workdir: str | os.PathLike, work: Work):
  """Writes workdir/NNNNN-of-NNNNN.array_record, a record for every clip that is long enough.

  Args:
    config: `weights` and `weights_name` (a folder and the file in it), `data.path`, `batch_size`
      (per process), `clips_per_shard`, `sharding` (mesh over the devices of a process, rules), and
      optionally `frozen`, as in training. Process p of n writes the shards p, p + n, ...
    workdir: folder that is written.
    work: what is made.

  Raises:
    ValueError: a config that makes no sense, weights that do not fit the clips, a folder that was
      made with other settings; the setting is named.
    ClipError: no clip is long enough, or a record cannot be read.
  """
  mesh = make_mesh(config.sharding.mesh, devices=jax.local_devices())
  shares = shares_of(mesh)
  if config.batch_size < 1 or config.batch_size % shares:
    raise ValueError(f"batch_size: found {config.batch_size}, expected a multiple of {shares}")
  if config.clips_per_shard < 1:
    raise ValueError(f"clips_per_shard: found {config.clips_per_shard}, expected at least 1")
  source = RecordSource(config.data.path)
  usable = usable_clips(source, work.latents, str(config.data.path))
  path = shipped.weights_file(config.weights, config.weights_name)
  folder = pathlib.Path(workdir)
  made_with = work.about | {
    "weights": {"path": str(path), "hash": fingerprint(path)},
    "data": {"path": config.to_dict()["data"]["path"], "clips": len(source)},
    "clips_per_shard": config.clips_per_shard,
  }
  check_folder(folder, work.settings_file, made_with)
  with _on_host():
    model = loading.load_base(config.weights, config.weights_name)
  frozen = load_encoders(config.frozen) if config.get("frozen") else None
  read = _Reader(source, model.config, work, frozen, str(path))
  read(int(usable[0]))  # what does not fit is found before anything is written
  maker = work.maker(model, mesh)
  write_settings(folder, work.settings_file, made_with)
  starts = range(0, len(usable), config.clips_per_shard)
  missing = {}
  for shard in range(jax.process_index(), len(starts), jax.process_count()):
    file = folder / f"{shard:05d}-of-{len(starts):05d}.array_record"
    if not file.exists():
      missing[file] = usable[starts[shard] : starts[shard] + config.clips_per_shard]
  with tqdm(total=sum(map(len, missing.values())), desc=work.label, unit="clip") as bar:
    for file, clips in missing.items():
      write_records(file, _made(maker, read, work, clips, config.batch_size, bar))
  if jax.process_count() > 1:  # the first to leave would take the coordinator along
    sync_global_devices(work.label)


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
    work: Work,
    frozen: FrozenEncoders | None,
    weights: str,
  ):
    self._source, self._model, self._frozen = source, model, frozen
    self._seed, self._cut, self._weights = work.seed, work.cut(model), weights

  def __call__(self, index: int) -> tuple[EncodedClip, Example]:
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
  maker: PerClip, read: _Reader, work: Work, indices: np.ndarray, size: int, bar: tqdm
) -> Iterator[EncodedClip]:
  """Records of clips, in order. The next batch is read while devices work on the one before.

  The last batch is filled up with its last clip: one shape, one program.
  """

  def finished(
    clips: Sequence[EncodedClip], examples: Sequence[Example], made: Array
  ) -> Iterator[EncodedClip]:
    for clip, example, of_clip in zip(clips, examples, np.asarray(made), strict=False):
      yield work.record(clip, example, of_clip)
      bar.update()

  running = None
  for first in range(0, len(indices), size):
    chosen = indices[first : first + size]
    clips, examples = zip(*(read(int(i)) for i in chosen), strict=True)
    filling = size - len(chosen)
    index = np.concatenate([chosen, np.repeat(chosen[-1:], filling)]).astype(np.int32)
    made = maker(stack([*examples, *[examples[-1]] * filling]), index)
    if running:
      yield from finished(*running)
    running = clips, examples, made
  yield from finished(*running)


def _on_host() -> contextlib.AbstractContextManager:
  """Weights are read into the host's memory, where JAX has it, and lie apart on devices later."""
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return contextlib.nullcontext()


def fingerprint(path: pathlib.Path, blocks: int = 64, length: int = 1 << 16) -> str:
  """A hash of a file's size and of blocks spread over it: enough to tell trained weights apart."""
  size = path.stat().st_size
  found = hashlib.sha256(str(size).encode())
  with open(path, "rb") as file:
    for start in np.linspace(0, max(0, size - length), blocks).astype(np.int64):
      file.seek(int(start))
      found.update(file.read(length))
  return found.hexdigest()[:16]


def read_settings(folder: str | os.PathLike, settings_file: str) -> dict:
  """How the records of a folder were made. Raises ValueError where that is not said."""
  path = pathlib.Path(folder) / settings_file
  try:
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
      raise TypeError(f"a {type(values).__name__}")
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(f"{path}: not the settings of records: {error!r}") from error
  return values


def check_folder(folder: pathlib.Path, settings_file: str, made_with: dict):
  """Raises ValueError when the folder holds records that were made otherwise."""
  path = folder / settings_file
  if not path.exists():
    if list(folder.glob("*.array_record")):
      raise ValueError(f"{folder}: found records without {settings_file}, expected a new folder")
    return
  known = _flat(read_settings(folder, settings_file))
  wanted = _flat(json.loads(json.dumps(made_with)))
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


def write_settings(folder: pathlib.Path, settings_file: str, made_with: dict):
  """Writes the settings, whole or not at all; the first process to come does."""
  if (folder / settings_file).exists():  # and is the same
    return
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f".{settings_file}.{jax.process_index()}.{os.getpid()}.tmp"
  try:
    temporary.write_text(json.dumps(made_with, indent=1) + "\n")
    os.replace(temporary, folder / settings_file)
  finally:
    temporary.unlink(missing_ok=True)
