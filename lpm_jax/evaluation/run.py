"""`lpm evaluate`: models beside the render, the render through the VAE, and a still picture.

Base is one model, every Online another. All systems take one code path: a system turns clips into
videos, the probe reads them, and the same measures are taken. Writes results.json and report.html
into the workdir, each whole or not at all.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.clip import Clip
from data_pipelines.puppets.scene import FPS
from lpm_jax.evaluation import actions, cost, goals, page, probe_task, report, scoring, suite
from lpm_jax.evaluation.online import ONLINE, OnlineSystem, stream_folders
from lpm_jax.evaluation.probe import Probe, load_probe
from lpm_jax.evaluation.scoring import System, Take
from lpm_jax.generate import GenerateSettings, Generator
from lpm_jax.models.audio import FRAMES_PER_LATENT
from lpm_jax.models.pixels import from_pixels, to_pixels
from lpm_jax.models.vae import VideoVAE
from lpm_jax.stream import stream_settings
from lpm_jax.streaming.sampler import StreamSettings
from lpm_jax.weights import loading

SYSTEMS = (*goals.ANCHORS, goals.BASE)


def render_system(clips: Sequence[Clip]) -> list[np.ndarray]:
  """The renders themselves: what a perfect model would draw."""
  return [clip.video for clip in clips]


def still_system(clips: Sequence[Clip]) -> list[np.ndarray]:
  """The first frame, held."""
  return [np.repeat(clip.video[:1], len(clip.video), axis=0) for clip in clips]


def vae_system(vae: VideoVAE) -> System:
  """The renders encoded and decoded: what a perfect transformer would draw."""
  graphdef, state = nnx.split(vae)

  @jax.jit
  def through(state: nnx.State, video: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, state)
    return to_pixels(model.decode(model.encode(from_pixels(video[None])))[0])

  return lambda clips: [np.asarray(through(state, clip.video)) for clip in clips]


def play(
  system: System, clips: Sequence[Clip], probe: Probe, *, batch: int, label: str
) -> list[Take]:
  """One system's takes of all clips, `batch` at a time, with a progress bar."""

  def chunks() -> Iterator[Sequence[Clip]]:
    for start in range(0, len(clips), batch):
      yield clips[start : start + batch]

  takes = []
  with tqdm(total=len(clips), desc=label, unit="clip", disable=None) as bar:
    for part in chunks():
      videos = system(part)
      takes += [scoring.take(probe, c, video) for c, video in zip(part, videos, strict=True)]
      bar.update(len(part))
  return takes


def score(takes: dict[str, list[Take]], chunk: int = scoring.CHUNK) -> dict[str, dict]:
  """All scores of one system from its takes per suite; for `chunk` see `scoring.performance`."""
  scores: dict[str, dict] = {}
  for name in ("heldout", "heldout_style"):
    if name in takes:
      scores[name] = scoring.performance(takes[name], chunk)
  if "heldout" in takes:
    scores["by_style"] = scoring.by_group(takes["heldout"], lambda one: one.clip.style, chunk)
    scores["by_kind"] = scoring.by_group(takes["heldout"], kind_of, chunk)
    scores["confusion"] = actions.confusion([one.measured for one in takes["heldout"]])
  for name in ("identity_with", "identity_without"):
    if name in takes:
      scores[name] = scoring.identity_scores(takes[name])
  return scores


def kind_of(one: Take) -> str:
  """The kind of a scene, told from its states: idle, speak, listen or dialogue."""
  speaks, listens = (bool((one.clip.state == code).any()) for code in (1, 2))
  return {(0, 0): "idle", (1, 0): "speak", (0, 1): "listen", (1, 1): "dialogue"}[speaks, listens]


def load_systems(config: ConfigDict) -> dict[str, System]:
  """The systems of `config.systems` by name, in fixed order; weights from `config.weights`.

  Streams are those of `online.stream_folders`, whose folders have weights of their own.
  """
  streams = stream_folders(config, SYSTEMS)
  known = [*SYSTEMS, ONLINE, *streams]
  unknown = set(config.systems) - set(known)
  if unknown:
    raise ValueError(f"systems: found {sorted(unknown)}, expected some of {known}")
  makers: dict[str, Callable[[], System]] = {
    "render": lambda: render_system,
    "vae": lambda: vae_system(loading.load_vae(config.weights)),
    goals.BASE: lambda: load_generator(config).generate_batch,
    **{name: functools.partial(load_online, config, at) for name, at in streams.items()},
    "still": lambda: still_system,
  }
  wanted = {*config.systems, *streams}
  return {name: make() for name, make in makers.items() if name in wanted}


def load_online(config: ConfigDict, folder: str) -> OnlineSystem:
  """The stream of a folder of weights, with slots for as many references as Base has."""
  settings = GenerateSettings(**config.generation)
  return OnlineSystem(
    loading.load_stream(folder, config.weights),
    _stream_settings(config),
    references=settings.references,
    seed=settings.seed,
  )


def costs(config: ConfigDict) -> dict[str, dict[str, float]]:
  """What a second of video costs Base and every stream of a config, see `cost.py`."""
  base = cost.generation_cost(GenerateSettings(**config.generation), config.suites.frames, FPS)
  stream = cost.stream_cost(_stream_settings(config), FPS)
  return {goals.BASE: base} | dict.fromkeys(stream_folders(config, SYSTEMS), stream)


def _stream_settings(config: ConfigDict) -> StreamSettings:
  return stream_settings(config.stream) if "stream" in config else StreamSettings()


def load_generator(config: ConfigDict) -> Generator:
  """The model under test with the solver of `config.generation`."""
  lpm, vae = loading.load_models(config.weights)
  return Generator(lpm, vae, GenerateSettings(**config.generation))


def evaluate(config: ConfigDict, workdir: str) -> dict:
  """Runs the evaluation of a config and writes results.json and report.html into `workdir`.

  Returns the results: {"systems": {system: scores}, "goals": [...], "retention": [...],
  "probe": {style: error}, ...} without NaN. Raises OSError when the workdir cannot be written,
  before anything is computed.
  """
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  page.write_whole(folder / "config.json", config.to_json_best_effort(indent=1))
  started = time.monotonic()
  probe = load_probe(config.probe_weights)
  systems = load_systems(config)
  suites = suite.build_suites(**config.suites)
  chunk = FRAMES_PER_LATENT * _stream_settings(config).causal.frames
  results, takes = run_systems(systems, suites, probe, batch=config.batch, chunk=chunk)
  for name, spent in costs(config).items():
    results["systems"].get(name, {})["cost"] = spent
  results["probe"] = probe_task.own_error(probe, config.probe_characters)
  results["seconds"] = round(time.monotonic() - started, 1)
  results["config"] = json.loads(config.to_json_best_effort())
  results = scoring.json_safe(results)
  page.write_whole(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
  counts = ", ".join(f"{len(clips)} {name.replace('_', ' ')}" for name, clips in suites.items())
  streams = stream_folders(config, SYSTEMS)
  weights = "; ".join([config.weights, *(f"{name}: {at}" for name, at in streams.items())])
  report.write_report(
    folder / "report.html",
    results,
    choose(takes, config.shown),
    title=config.title,
    subtitle=f"Weights: {weights}. Clips: {counts}. Measured in {results['seconds']:.0f} s.",
    command=config.command,
  )
  return results


def run_systems(
  systems: dict[str, System],
  suites: dict[str, list[Clip]],
  probe: Probe,
  *,
  batch: int,
  chunk: int = scoring.CHUNK,
) -> tuple[dict, dict[str, dict[str, list[Take]]]]:
  """Plays every suite with every system; seams are looked for every `chunk` video frames.

  Returns ({"systems", "goals", "retention"} without NaN, takes[system][suite]).
  """
  takes = {
    name: {
      group: play(system, clips, probe, batch=batch, label=f"{name}: {group}")
      for group, clips in suites.items()
    }
    for name, system in systems.items()
  }
  scores = scoring.json_safe({name: score(groups, chunk) for name, groups in takes.items()})
  kept = goals.retention(scores)
  return {"systems": scores, "goals": goals.judge(scores), "retention": kept}, takes


def choose(takes: dict[str, dict[str, list[Take]]], shown: int) -> list[dict[str, Take]]:
  """For the report: the first clips of each kind in turn, as {system: take}, `shown` in all."""
  first = next(iter(takes.values()))["heldout"]
  by_kind: dict[str, list[int]] = {}
  for i, one in enumerate(first):
    by_kind.setdefault(kind_of(one), []).append(i)
  order = [
    indices[turn]
    for turn in range(len(first))
    for indices in by_kind.values()
    if turn < len(indices)
  ]
  return [{name: groups["heldout"][i] for name, groups in takes.items()} for i in order[:shown]]
