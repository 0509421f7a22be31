import dataclasses

import numpy as np
import pytest

from data_pipelines import records
from data_pipelines.clip import Clip, ClipError, EncodedClip, audio_samples, latent_frames

COMMON = dict(
  clip_id="clip-7",
  character_id="ada",
  style="anime",
  source="puppets",
  consent="synthetic",
  fps=24.0,
  text="a calm character speaks",
  reference_kind=np.array([0, 1], np.int32),
  reference_label=np.array([0, 3], np.int32),
)


def make_clip(frames: int = 5, **fields) -> Clip:
  rng = np.random.default_rng(0)
  samples = audio_samples(frames)
  clip = dict(
    video=rng.integers(0, 255, (frames, 8, 8, 3), np.uint8),
    speak_audio=rng.uniform(-1, 1, samples).astype(np.float32),
    listen_audio=np.zeros(samples, np.float32),
    state=np.zeros(frames, np.int8),
    references=np.zeros((2, 8, 8, 3), np.uint8),
    truth={"pose": np.ones((frames, 14), np.float32), "events": [{"kind": "nod", "start_s": 0.1}]},
  )
  return Clip(**(COMMON | clip | fields))


def make_encoded(**fields) -> EncodedClip:
  encoded = dict(
    latents=np.zeros((2, 1, 1, 16), np.float32),
    speak_audio=np.zeros(audio_samples(5), np.float32),
    listen_audio=np.zeros(audio_samples(5), np.float32),
    state=np.zeros(5, np.int8),
    references=np.zeros((2, 1, 1, 16), np.float32),
  )
  return EncodedClip(**(COMMON | encoded | fields))


def test_latent_frames_counts_the_first_frame_alone():
  assert [latent_frames(t) for t in (1, 5, 73)] == [1, 2, 19]
  with pytest.raises(ValueError, match="found 8"):
    latent_frames(8)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("video", np.zeros((4, 8, 8, 3), np.uint8)),
    ("video", np.zeros((5, 8, 8, 3), np.float32)),
    ("speak_audio", np.zeros(100, np.float32)),
    ("listen_audio", np.full(audio_samples(5), np.nan, np.float32)),
    ("speak_audio", np.full(audio_samples(5), 1.5, np.float32)),
    ("state", np.full(5, 3, np.int8)),
    ("state", np.zeros(6, np.int8)),
    ("reference_kind", np.array([0], np.int32)),
    ("reference_label", np.array([0, 4], np.int32)),
    ("text", None),
    ("consent", ""),
    ("fps", 0.0),
  ],
)
def test_a_wrong_field_is_named_with_its_clip(field, value):
  with pytest.raises(ClipError, match=f"clip-7.*{field}"):
    make_clip(**{field: value})


def test_an_encoded_clip_checks_latents_against_audio_length():
  make_encoded()
  with pytest.raises(ClipError, match="speak_audio.*expected"):
    make_encoded(latents=np.zeros((3, 1, 1, 16), np.float32))


@pytest.mark.parametrize("make", [make_clip, make_encoded])
def test_records_return_every_field(tmp_path, make):
  clips = [make(clip_id=f"clip-{i}") for i in range(5)]
  assert records.write_records(tmp_path / "a-0.array_record", clips[:2]) == 2
  assert records.write_records(tmp_path / "a-1.array_record", clips[2:]) == 3
  source = records.RecordSource(tmp_path)
  assert [source[i].clip_id for i in range(len(source))] == [clip.clip_id for clip in clips]
  found = source[4]
  for field in dataclasses.fields(found):
    if field.name not in ("file", "truth"):
      np.testing.assert_array_equal(getattr(found, field.name), getattr(clips[4], field.name))
  assert found.truth.get("events") == clips[4].truth.get("events")
  assert found.file.endswith("a-1.array_record")


def test_several_folders_are_read_one_after_the_other(tmp_path):
  for name in "ab":
    clips = [make_clip(clip_id=f"{name}-{i}") for i in range(2)]
    records.write_records(tmp_path / name / "0.array_record", clips)
  source = records.RecordSource((tmp_path / "b", tmp_path / "a"))
  assert [source[i].clip_id for i in range(len(source))] == ["b-0", "b-1", "a-0", "a-1"]
  with pytest.raises(FileNotFoundError, match="missing"):
    records.RecordSource((tmp_path / "b", tmp_path / "missing"))


def test_a_truncated_record_file_is_named(tmp_path):
  path = tmp_path / "cut.array_record"
  records.write_records(path, [make_clip()] * 3)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ClipError, match="cut.array_record"):
    records.RecordSource(path)


def test_a_flipped_byte_is_found_when_the_clip_is_read(tmp_path):
  path = tmp_path / "flip.array_record"
  records.write_records(path, [make_clip()] * 3)
  data = bytearray(path.read_bytes())
  middle = data.index(make_clip().video.tobytes()[:64])
  data[middle] ^= 255
  path.write_bytes(bytes(data))
  source = records.RecordSource(path)
  with pytest.raises(ClipError, match="flip.array_record"):
    [source[i] for i in range(len(source))]


def test_an_interrupted_write_leaves_nothing(tmp_path):
  def clips():
    yield make_clip()
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    records.write_records(tmp_path / "a.array_record", clips())
  assert not list(tmp_path.iterdir())
