"""Records: half stays half, what is wrong is named, the index needs no clip to be read."""

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from data_pipelines import records
from data_pipelines.clip import ClipError, EncodedClip, audio_samples
from data_pipelines.index import index_path
from data_pipelines.loader import ExampleConfig, example_from_clip, stack

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def make_clip(index: int = 0, latents: int = 3, **fields) -> EncodedClip:
  """A clip of 9 frames (6,000 samples, one begun second of features) with noise everywhere."""
  rng = np.random.default_rng(index)
  frames = 4 * (latents - 1) + 1
  noise = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  values = dict(
    latents=noise(latents, 2, 2, 4),
    speak_audio=np.clip(0.1 * noise(audio_samples(frames)), -1, 1),
    listen_audio=np.zeros(audio_samples(frames), np.float32),
    state=np.full(frames, index % 3, np.int8),
    references=noise(2, 2, 2, 4),
    reference_kind=np.array([0, 2], np.int32),
    reference_label=np.array([0, 5], np.int32),
    text_features=noise(4, 6).astype(BFLOAT16),
    speak_features=noise(50, 3, 5).astype(BFLOAT16),
    listen_features=noise(50, 3, 5).astype(BFLOAT16),
  )
  names = (f"clip-{index}", "p", "anime", "test", "synthetic")
  return EncodedClip(*names, fps=24.0, text="she nods", **values | fields)


def half_of(clip: EncodedClip) -> EncodedClip:
  both = {name: getattr(clip, name).astype(BFLOAT16) for name in ("latents", "references")}
  return dataclasses.replace(clip, **both)


@pytest.mark.parametrize("half", [False, True])
def test_latents_reach_the_device_in_the_dtype_they_are_stored_in(tmp_path: pathlib.Path, half):
  clips = [make_clip(i) for i in range(2)]
  records.write_records(tmp_path / "0.array_record", clips, half=half)
  source = records.RecordSource(tmp_path)
  cut, rng = ExampleConfig(frames=3, slots=2, text_length=4), np.random.default_rng(0)
  batch = stack([example_from_clip(source[i], rng, cut) for i in range(2)])
  on_device = jax.device_put(batch)
  for name in ("latents", "references"):
    assert on_device[name].dtype == (BFLOAT16 if half else np.float32)
  stored = [half_of(clip) if half else clip for clip in clips]
  np.testing.assert_array_equal(on_device["latents"], [clip.latents for clip in stored])
  assert on_device["speak_features"].dtype == BFLOAT16
  np.testing.assert_array_equal(
    on_device["speak_features"][0, :50], clips[0].speak_features.astype(np.float32)
  )


def test_a_clip_that_is_half_already_is_written_without_change(tmp_path: pathlib.Path):
  records.write_records(tmp_path / "0.array_record", [half_of(make_clip())])
  found = records.RecordSource(tmp_path)[0]
  np.testing.assert_array_equal(
    found.latents.view(np.uint16), half_of(make_clip()).latents.view("u2")
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      dict(speak_audio=np.zeros(100, np.float32)),
      r"speak_audio: found shape \(100,\), .*\(6000,\)",
    ),
    (dict(state=np.zeros(8, np.int8)), r"state: found shape \(8,\), expected shape \(9,\)"),
    (
      dict(references=np.zeros((2, 2, 2, 4), np.float32)),
      "references: .*float32, expected bfloat16",
    ),
    (
      dict(listen_features=np.zeros((30, 3, 5), BFLOAT16)),
      "listen_features: found 30 features for 1 s, 30 a second, expected 50, 50 a second",
    ),
    (dict(speak_features=np.zeros((50, 3, 5), np.float32)), "speak_features: found dtype float32"),
    (dict(latents=np.full((3, 2, 2, 4), np.nan, BFLOAT16)), "latents: .*not finite"),
    (dict(latents=np.full((3, 2, 2, 4), -np.inf, BFLOAT16)), "latents: .*not finite"),
    (dict(text_features=np.full((4, 6), np.inf, BFLOAT16)), "text_features: .*not finite"),
    (dict(latents=np.zeros((3, 2, 2, 4), np.float16)), "latents: .*float16, .*float32 or bfloat16"),
  ],
)
def test_a_wrong_field_of_a_record_in_half_is_named_with_clip_and_file(
  tmp_path: pathlib.Path, fields: dict, message: str
):
  clip = half_of(make_clip(7))
  for name, value in fields.items():  # past the check, as another program would write it
    object.__setattr__(clip, name, value)
  with pytest.raises(ClipError, match=f"'clip-7' in the file: {message}"):
    records.from_record(records.to_record(clip), "the file")
  with pytest.raises(ClipError, match=f"'clip-7': {message}"):
    records.write_records(tmp_path / "0.array_record", [clip])
  assert not list(tmp_path.iterdir())


def test_a_record_whose_lengths_do_not_agree_is_no_clip():
  record = records.to_record(half_of(make_clip()))
  start = 8 + int.from_bytes(record[:8], "little")
  header = record[8:start]
  assert b'"shape":[3,2,2,4]' in header
  longer = header.replace(b'"shape":[3,2,2,4]', b'"shape":[4,2,2,4]')
  for damaged in (record[:8] + longer + record[start:], record[:-9], record[:40], b"", b"x" * 99):
    with pytest.raises(ClipError, match=r"the file: not a clip record \(\d+ bytes\)"):
      records.from_record(damaged, "the file")


def unreadable(source: records.RecordSource, index: int):
  raise AssertionError(f"record {index} was read")


def test_the_index_knows_states_and_dtypes_without_reading_a_clip(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  records.write_records(tmp_path / "0.array_record", [make_clip(i) for i in range(3)], half=True)
  records.write_records(tmp_path / "1.array_record", [make_clip(i) for i in range(4, 6)], half=True)
  source = records.RecordSource(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(records.RecordSource, "__getitem__", unreadable)
    index = source.index()
  expected = [np.bincount(source[i].state, minlength=3) for i in range(5)]
  np.testing.assert_array_equal(index.states, expected)
  assert index.dtypes == ("bfloat16",)


@pytest.mark.parametrize("damage", ["missing", "of another file", "cut"])
def test_an_index_that_does_not_fit_is_made_from_the_records(tmp_path: pathlib.Path, damage: str):
  path = tmp_path / "0.array_record"
  records.write_records(path, [make_clip(i) for i in range(3)])
  index = index_path(path)
  if damage == "missing":
    index.unlink()
  elif damage == "cut":
    index.write_text(index.read_text()[:20])
  else:
    content = json.loads(index.read_text())
    index.write_text(
      json.dumps(content | {"bytes": content["bytes"] - 1, "states": [[9, 9, 9]] * 3})
    )
  found = records.RecordSource(tmp_path).index()
  np.testing.assert_array_equal(found.states, 9 * np.eye(3))
  assert found.dtypes == ("float32",)
