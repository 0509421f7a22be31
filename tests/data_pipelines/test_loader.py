"""Loader: the same global batches on any process count, exact resume, windows, references."""

import dataclasses

import grain
import ml_dtypes
import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines.clip import TWIN, ClipError, EncodedClip, audio_samples
from data_pipelines.loader import ExampleConfig, example_from_clip, example_from_twins


def noisy_range(size: int, seed: int = 7) -> grain.MapDataset:
  return grain.MapDataset.range(size).random_map(
    lambda i, rng: {"i": np.int32(i), "noise": rng.normal(size=2)}, seed=seed
  )


def take(iterator: grain.DatasetIterator, count: int) -> list[dict]:
  return [next(iterator) for _ in range(count)]


def global_batches(processes: int, count: int, state: dict | None = None) -> list[dict]:
  parts = []
  for process in range(processes):
    iterator = loader.batches(
      noisy_range(10), seed=1, batch_size=8, process_index=process, process_count=processes
    )
    if state:
      iterator.set_state(state)
    parts.append(take(iterator, count))
  return [
    {name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][0]}
    for step in range(count)
  ]


def assert_same(a: list[dict], b: list[dict]):
  for left, right in zip(a, b, strict=True):
    for name in left:
      np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_do_not_depend_on_process_count(processes: int):
  assert_same(global_batches(1, 6), global_batches(processes, 6))


def test_a_process_reads_no_row_of_another():
  read: list[list[int]] = []
  for process in range(4):
    seen: list[int] = []
    dataset = grain.MapDataset.range(64).map(lambda i, seen=seen: seen.append(i) or {"i": i})
    stages = [(1, dataset.repeat(None))]
    iterator = loader.batches(
      stages, seed=0, batch_size=8, process_index=process, process_count=4, threads=1, buffer=2
    )
    take(iterator, 4)
    read.append(seen)
  rows = [{(index % 8) // 2 for index in seen} for seen in read]
  assert rows == [{0}, {1}, {2}, {3}]
  assert all(len(set(seen)) == len(seen) <= 2 * (4 + 2 + 1) for seen in read)


def test_a_batch_of_two_dtypes_or_shapes_is_named():
  both = [{"latents": np.zeros(3, dtype)} for dtype in (np.float32, ml_dtypes.bfloat16)]
  with pytest.raises(
    ClipError, match=r"latents: found \['bfloat16 .*'float32 .*expected one dtype"
  ):
    loader.stack(both)
  with pytest.raises(ClipError, match=r"state: found .*\(2,\).*\(3,\)"):
    loader.stack([{"state": np.zeros(2)}, {"state": np.zeros(3)}])


def test_state_of_one_process_continues_on_four():
  iterator = loader.batches(noisy_range(10), seed=1, batch_size=8)
  take(iterator, 3)
  state = iterator.get_state()
  assert_same(take(iterator, 2), global_batches(4, 2, state))
  assert_same(global_batches(1, 5)[3:], global_batches(4, 2, state))


def test_every_epoch_has_each_example_once_in_a_new_order_with_new_draws():
  rows = take(loader.batches(noisy_range(12), seed=0, batch_size=4), 6)
  index = np.concatenate([row["i"] for row in rows])
  noise = np.concatenate([row["noise"] for row in rows])
  first, second = index[:12], index[12:]
  assert sorted(first) == sorted(second) == list(range(12))
  assert list(first) != list(second) and list(first) != list(range(12))
  assert len(np.unique(noise, axis=0)) == 24


def test_processes_that_do_not_divide_the_batch_are_refused():
  with pytest.raises(ValueError, match="batch_size: found 8, expected a multiple of 3"):
    loader.batches(noisy_range(4), seed=0, batch_size=8, process_count=3)


def test_mixture_has_the_weights_and_leaves_out_what_is_empty():
  parts = [grain.MapDataset.range(5), grain.MapDataset.range(100, 103), grain.MapDataset.range(0)]
  mixed = loader.mixture(parts, [3, 1, 5], seed=0)
  drawn = np.array([mixed[i] for i in range(400)])
  assert (drawn < 100).sum() == 300
  with pytest.raises(ValueError, match="no example"):
    loader.mixture(parts, [0, 0, 1], seed=0)


def test_stages_switch_at_their_step_also_after_restore():
  def stage(value: int) -> grain.MapDataset:
    return grain.MapDataset.range(3).map(lambda i: {"v": np.int32(value)}).repeat(None)

  stages = [(2, stage(1)), (3, stage(2)), (1, stage(3))]
  iterator = loader.batches(stages, seed=0, batch_size=2)
  seen = [row["v"][0] for row in take(iterator, 8)]
  assert seen == [1, 1, 2, 2, 2, 3, 3, 3]
  again = loader.batches(stages, seed=0, batch_size=2)
  take(again, 4)
  state = again.get_state()
  fresh = loader.batches(stages, seed=0, batch_size=2)
  fresh.set_state(state)
  assert [row["v"][0] for row in take(fresh, 2)] == [2, 3]


def make_clip(latents: int = 8) -> EncodedClip:
  """Latent f holds f; audio sample s holds s / total; references hold their index."""
  frames = 4 * (latents - 1) + 1
  samples = audio_samples(frames)
  audio = (np.arange(samples) / samples).astype(np.float32)
  index = np.arange(latents, dtype=np.float32)[:, None, None, None]
  kinds = np.array([0, 1, 1, 2, 2, 2], np.int32)
  marks = np.arange(6, dtype=np.float32)[:, None, None, None]
  return EncodedClip(
    clip_id="c",
    character_id="p",
    style="anime",
    source="s",
    consent="synthetic",
    fps=24.0,
    text="looks left, then smiles",
    latents=np.broadcast_to(index, (latents, 2, 2, 4)).copy(),
    speak_audio=audio,
    listen_audio=-audio,
    state=(np.arange(frames) % 3).astype(np.int8),
    references=np.broadcast_to(marks, (6, 2, 2, 4)).copy(),
    reference_kind=kinds,
    reference_label=np.array([0, 0, 3, 0, 1, 7], np.int32),
  )


def test_window_from_the_start_has_one_clean_latent_and_the_audio_of_the_clip():
  clip = make_clip()
  example = example_from_clip(clip, np.random.default_rng(0), ExampleConfig(5, 4, 6))
  assert example["known"] == 1
  np.testing.assert_array_equal(example["latents"], clip.latents[:5])
  samples, heard = audio_samples(37), len(clip.speak_audio)
  assert example["speak_audio"].shape == (samples,)
  np.testing.assert_array_equal(example["speak_audio"][:heard], clip.speak_audio)
  assert not example["speak_audio"][heard:].any()
  np.testing.assert_array_equal(example["state"], clip.state[:17])
  assert example["text_tokens"].shape == (6,) and example["text_tokens"].dtype == np.int32


def test_extension_starts_within_the_clip_and_says_where():
  clip, starts, clean = make_clip(12), set(), set()
  for seed in range(40):
    cut = ExampleConfig(5, 4, 6, extension=1.0)
    example = example_from_clip(clip, np.random.default_rng(seed), cut)
    start = int(example["latents"][0, 0, 0, 0])
    assert example["start"] == start
    np.testing.assert_array_equal(example["listen_audio"], clip.listen_audio[: audio_samples(37)])
    np.testing.assert_array_equal(example["state"], clip.state[4 * start : 4 * start + 17])
    starts.add(start)
    clean.add(int(example["known"]))
  assert starts == clean == {2, 3, 4, 5}


def test_references_are_a_random_subset_with_their_own_labels():
  clip, counts = make_clip(), set()
  for seed in range(60):
    cut = ExampleConfig(5, 4, 6, global_reference=1.0, extra_references=0.5)
    example = example_from_clip(clip, np.random.default_rng(seed), cut)
    filled = example["reference_kind"] >= 0
    which = example["references"][:, 0, 0, 0].astype(int)[filled]
    assert which[0] == 0 and len(set(which)) == len(which)
    np.testing.assert_array_equal(example["reference_kind"][filled], clip.reference_kind[which])
    np.testing.assert_array_equal(example["reference_label"][filled], clip.reference_label[which])
    assert not example["references"][~filled].any()
    counts.add(int(filled.sum()))
  assert counts == {1, 2, 3, 4}


def test_no_reference_at_all_leaves_empty_slots():
  cut = ExampleConfig(5, 3, 6, global_reference=0.0, extra_references=0.0)
  example = example_from_clip(make_clip(), np.random.default_rng(0), cut)
  assert list(example["reference_kind"]) == [-1, -1, -1]


def test_clip_shorter_than_the_window_is_named():
  with pytest.raises(ClipError, match="'c'.*found 8 frames, expected at least 9"):
    example_from_clip(make_clip(), np.random.default_rng(0), ExampleConfig(9, 3, 6))


def test_a_window_from_anywhere_hears_five_latents_of_its_past():
  clip, starts = make_clip(12), set()
  cut = ExampleConfig(5, 4, 6, random_start=1.0)
  for seed in range(60):
    example = example_from_clip(clip, np.random.default_rng(seed), cut)
    start, lead = int(example["latents"][0, 0, 0, 0]), int(example["start"])
    assert lead == min(start, 5) and example["known"] == 1
    heard = clip.speak_audio[audio_samples(4 * (start - lead)) :][: audio_samples(37)]
    np.testing.assert_array_equal(example["speak_audio"][: len(heard)], heard)
    assert not example["speak_audio"][len(heard) :].any()
    starts.add(start)
  assert starts == set(range(8))


def test_a_window_of_twins_is_the_picture_and_a_moment_in_which_they_differ():
  clip, starts = make_clip(12), set()
  differing = clip.latents.copy()
  differing[7:9] += 100.0
  twin = dataclasses.replace(
    clip, clip_id="c" + TWIN, latents=differing, references=clip.references + 100.0
  )
  cut = ExampleConfig(4, 4, 6, extra_references=1.0, filled=1.0)
  for seed in range(40):
    example = example_from_twins(clip, twin, np.random.default_rng(seed), cut)
    one, other = (example[name][:, 0, 0, 0] for name in ("latents", "twin_latents"))
    assert one[0] == other[0] == 0 and example["time"][0] == 0 and example["known"] == 1
    np.testing.assert_array_equal(example["time"], one)
    assert (one != other).any()
    lead = int(example["start"])
    heard = clip.speak_audio[audio_samples(4 * (int(one[1]) - 1 - lead)) :][: audio_samples(33)]
    np.testing.assert_array_equal(example["speak_audio"][: len(heard)], heard)
    np.testing.assert_array_equal(example["references"] + 100.0, example["twin_references"])
    assert (example["reference_kind"] >= 0).all()
    starts.add(int(one[1]))
  assert starts == {5, 6, 7, 8}
  with pytest.raises(ClipError, match="found no twin of 'c'"):
    example_from_twins(clip, clip, np.random.default_rng(0), cut)
