"""Seeded, resumable global batches that do not depend on the number of processes."""

import dataclasses
import math
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.clip import (
  FEATURES_PER_SECOND,
  SAMPLE_RATE,
  TWIN,
  ClipError,
  EncodedClip,
  Preference,
  Trajectory,
  audio_samples,
  fitted_audio,
  fitted_rows,
)
from data_pipelines.memory import keep_large_buffers
from lpm_jax.models.text import tokenize

Stages = Sequence[tuple[int, grain.MapDataset]]
_FOREVER = 2**40
EXTENSION = (2, 5)  # latents dropped, and latents given clean, when a window starts within a clip


def endless(dataset: grain.MapDataset, seed: int) -> grain.MapDataset:
  """A finite dataset, shuffled anew in every epoch, without end."""
  return dataset.shuffle(seed=seed).repeat(None) if len(dataset) > 1 else dataset.repeat(None)


def mixture(
  datasets: Sequence[grain.MapDataset], weights: Sequence[float], seed: int
) -> grain.MapDataset:
  """An endless mixture of finite datasets; those of weight 0 and empty ones are left out.

  Raises ValueError when nothing is left.
  """
  parts = [
    (endless(dataset, seed + i), float(weight))
    for i, (dataset, weight) in enumerate(zip(datasets, weights, strict=True))
    if weight > 0 and len(dataset)
  ]
  if not parts:
    sizes = [len(dataset) for dataset in datasets]
    raise ValueError(f"mixture: sizes {sizes} with weights {list(weights)} leave no example")
  return grain.MapDataset.mix([part for part, _ in parts], weights=[weight for _, weight in parts])


def stage_at(stages: Sequence[tuple[int, object]], step: int) -> int:
  """Index of the stage that holds `step`; the last stage lasts."""
  for index, (steps, _) in enumerate(stages[:-1]):
    if step < steps:
      return index
    step -= steps
  return len(stages) - 1


def stack(examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Examples as one batch. Raises ClipError naming a field that is not of one dtype and shape."""
  batch = {}
  for name in examples[0]:
    rows = [np.asarray(example[name]) for example in examples]
    found = {f"{row.dtype} {row.shape}" for row in rows}
    if len(found) > 1:
      raise ClipError(f"batch: {name}: found {sorted(found)}, expected one dtype and shape")
    batch[name] = np.stack(rows)
  return batch


def batches(
  dataset: grain.MapDataset | Stages,
  *,
  seed: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
  buffer: int = 4,
) -> grain.DatasetIterator:
  """This process's rows of the global batches: dicts of stacked numpy arrays, without end.

  Row r of global batch s is element s * batch_size + r of the shuffled, endless dataset, whichever
  process reads it; random transforms are seeded by that index too. `get_state` is a small dict of
  plain values that any process count can continue from.

  Args:
    dataset: finite, shuffled here; or stages [(steps, endless dataset)], switched by step.
    batch_size: of the global batch. Raises ValueError when the processes do not divide it.
    threads, buffer: batches read at once and kept ready.
  """
  if batch_size % process_count:
    raise ValueError(f"batch_size: found {batch_size}, expected a multiple of {process_count}")
  finite = isinstance(dataset, grain.MapDataset)
  stages = [(_FOREVER, endless(dataset, seed))] if finite else dataset
  keep_large_buffers()
  rows = batch_size // process_count
  offset = process_index * rows

  def read(step: int) -> dict[str, np.ndarray]:
    source = stages[stage_at(stages, step)][1]
    first = step * batch_size + offset
    examples = [source[index] for index in range(first, first + rows)]
    return stack(examples)

  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  steps = grain.MapDataset.range(_FOREVER).map(read)
  return iter(steps.to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
  """How `example_from_clip` cuts a clip.

  Args:
    frames: latent frames of the window.
    slots: reference slots; empty ones have kind -1.
    text_length: tokens of text.
    global_reference: probability that the global reference is there.
    extra_references: probability that a random subset of body views and expressions is there.
    filled: probability that this subset takes every slot that is left.
    extension: probability that the window starts 2 to 5 latents into the clip (LPM 1.0: drop the
      first 2-5) and is given 2 to 5 clean ones.
    random_start: otherwise, probability that it starts anywhere, with one clean latent.
  """

  frames: int
  slots: int
  text_length: int
  global_reference: float = 1.0
  extra_references: float = 0.0
  filled: float = 0.0
  extension: float = 0.0
  random_start: float = 0.0


def example_from_clip(
  clip: EncodedClip, rng: np.random.Generator, config: ExampleConfig, later: int = 0
) -> dict[str, np.ndarray]:
  """One training example of the Base model, a window of an encoded clip.

  With `later` the clip's first latent is followed by those from `later` on.

  Returns latents [F, h, w, C] and references [R, h, w, C] in the dtype of the clip;
  reference_kind and reference_label int32 [R]; state int8 [T]; speak_audio, listen_audio [S] of
  F + 5 latents, up to 5 of them before the window so that it hears its true past, silence after the
  clip's end; start int32 []: the window's first latent in that audio; time int32 [F]: temporal
  index of each latent; known int32 []: clean latents at its start; text_tokens int32 [L]. The
  features of a clip that has them are cut likewise: text_features [L, D_text]; speak_features,
  listen_features [S50, layers + 1, width] from the nearest feature on, 10 ms away at most, zeros
  after the clip's end.
  Raises ClipError for a clip shorter than the window.
  """
  total = len(clip.latents)
  if total < config.frames:
    raise ClipError(
      f"{_place_of(clip)}: latents: found {total} frames, expected at least {config.frames}"
    )
  start, known = 0, 1
  # Drawn in any case, so that a clip's other draws do not depend on the stage.
  extend, (offset, clean) = rng.random(), rng.integers(*EXTENSION, size=2, endpoint=True)
  move, anywhere = rng.random(), rng.integers(0, total - config.frames, endpoint=True)
  if extend < config.extension:
    start, known = min(offset, total - config.frames), clean
  elif move < config.random_start:
    start = anywhere
  if later:
    start, known = later - 1, 1
  lead = min(start, EXTENSION[1])
  begin = audio_samples(4 * (start - lead), clip.fps)
  frames = 4 * (config.frames - 1) + 1
  samples = audio_samples(frames + 4 * EXTENSION[1], clip.fps)
  references, kind, label = _choose_references(clip, rng, config)
  latents, time = clip.latents[start : start + config.frames], np.arange(config.frames)
  if later:
    latents, time[1:] = np.concatenate([clip.latents[:1], latents[1:]]), time[1:] + start
  return {
    "latents": latents,
    "speak_audio": fitted_audio(clip.speak_audio[begin:], samples),
    "listen_audio": fitted_audio(clip.listen_audio[begin:], samples),
    "state": clip.state[4 * start : 4 * start + frames],
    "text_tokens": tokenize(clip.text, config.text_length),
    "references": references,
    "reference_kind": kind,
    "reference_label": label,
    "start": np.int32(lead),
    "time": time.astype(np.int32),
    "known": np.int32(known),
    **_features(clip, config.text_length, begin, samples),
  }


def trajectory_example(
  record: Trajectory, rng: np.random.Generator, config: ExampleConfig
) -> dict[str, np.ndarray]:
  """`example_from_clip`, from the clip's beginning, with `trajectory` [P, F, h, w, C] as stored.

  Raises ClipError for a record without trajectory, or with one shorter than the window; ValueError
  for a config whose windows begin within the clip.
  """
  if not isinstance(record, Trajectory):
    raise _lacking(record, "trajectory", "make it with `lpm distill` (task = 'trajectories')")
  frames = _from_beginning(record, "trajectory", record.trajectory.shape[1], config)
  return {
    **example_from_clip(record, rng, config),
    "trajectory": record.trajectory[:, :frames],
  }


def preference_example(
  record: Preference, rng: np.random.Generator, config: ExampleConfig
) -> dict[str, np.ndarray]:
  """`example_from_clip`, from the clip's beginning, with the winner's latents and the loser's.

  latents are those of the winner, loser [F, h, w, C] those of the other, both as stored. Raises
  ClipError for a record without preference, or one shorter than the window; ValueError for a config
  whose windows begin within the clip.
  """
  if not isinstance(record, Preference):
    raise _lacking(record, "winner", "make it with `lpm prefer` (task = 'pairs')")
  frames = _from_beginning(record, "winner", len(record.winner), config)
  both = {"latents": record.winner[:frames], "loser": record.loser[:frames]}
  return {**example_from_clip(record, rng, config), **both}


def _lacking(record: EncodedClip, field: str, remedy: str) -> ClipError:
  return ClipError(f"{_place_of(record)}: {field}: missing: {remedy}")


def _place_of(record: EncodedClip) -> str:
  return f"clip {record.clip_id!r}{f' in {record.file}' if record.file else ''}"


def _from_beginning(record: EncodedClip, field: str, made: int, config: ExampleConfig) -> int:
  """The window's frames, where what was made of a clip has as many."""
  if config.extension or config.random_start:
    raise ValueError(
      f"extension, random_start: found {config.extension}, {config.random_start}, expected 0: a "
      f"{field} begins with its clip"
    )
  if made < config.frames:
    raise ClipError(
      f"{_place_of(record)}: {field}: found {made} frames, expected at least {config.frames}"
    )
  return config.frames


def example_from_twins(
  clip: EncodedClip, twin: EncodedClip, rng: np.random.Generator, config: ExampleConfig
) -> dict[str, np.ndarray]:
  """A window of `later` latents in which two twins differ; see `example_from_clip`.

  Adds twin_latents and twin_references: the same window and the same slots of the other one. Where
  they differ more, windows begin more often. Raises ClipError for clips that are no twins.
  """
  if twin.clip_id != clip.clip_id + TWIN:
    raise ClipError(f"clip {twin.clip_id!r} in {twin.file}: found no twin of {clip.clip_id!r}")
  apart = clip.latents.astype(np.float32) - twin.latents.astype(np.float32)
  between = np.square(apart).sum((1, 2, 3))
  energy = np.convolve(between[1:], np.ones(config.frames - 1), "valid")
  chance = np.sqrt(energy) + 1e-6
  later = 1 + int(rng.choice(len(energy), p=chance / chance.sum()))
  seed = rng.integers(2**63)  # both take the same references
  one, other = (
    example_from_clip(each, np.random.default_rng(seed), config, later) for each in (clip, twin)
  )
  return one | {"twin_latents": other["latents"], "twin_references": other["references"]}


def _features(clip: EncodedClip, length: int, begin: int, samples: int) -> dict[str, np.ndarray]:
  """The cached features of a clip for the audio samples begin .. begin + samples."""
  rate = FEATURES_PER_SECOND / SAMPLE_RATE
  found = {}
  if clip.text_features is not None:
    found["text_features"] = fitted_rows(clip.text_features, length)
  for name in ("speak_features", "listen_features"):
    if getattr(clip, name) is not None:
      features = getattr(clip, name)[round(begin * rate) :]
      found[name] = fitted_rows(features, math.ceil(samples * rate))
  return found


def _choose_references(
  clip: EncodedClip, rng: np.random.Generator, config: ExampleConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """References [R, h, w, C], kind [R], label [R] of the slots that this example fills."""
  order = rng.permutation(len(clip.references))
  main = [i for i in order if clip.reference_kind[i] == 0][:1]
  extra = [i for i in order if clip.reference_kind[i] > 0]
  with_main, with_extra, share = rng.random(3)
  chosen = main if with_main < config.global_reference else []
  if with_extra < config.extra_references and extra:
    room = min(len(extra), config.slots - len(chosen))
    if config.filled and rng.random() < config.filled:
      share = 1.0 - 1e-9
    chosen = chosen + extra[: 1 + int(share * room)]
  chosen = chosen[: config.slots]
  shape = (config.slots, *clip.references.shape[1:])
  references = np.zeros(shape, clip.references.dtype)
  kind, label = np.full(config.slots, -1, np.int32), np.zeros(config.slots, np.int32)
  references[: len(chosen)] = clip.references[chosen]
  kind[: len(chosen)] = clip.reference_kind[chosen]
  label[: len(chosen)] = clip.reference_label[chosen]
  return references, kind, label
