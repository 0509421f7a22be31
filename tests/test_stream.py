"""`lpm stream`: files in, mp4 and report out, and on again after a kill."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from configs.puppets import stream as recipe
from lpm_jax import media, stream
from tests.streaming.small import PICTURE, SETTINGS, make_models
from tests.streaming.test_sound import tone


def small_models(*_) -> stream.loading.StreamModels:
  return stream.loading.StreamModels(*make_models(), None)


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setattr(stream.loading, "load_stream", small_models)
  Image.fromarray(PICTURE).save(tmp_path / "picture.png")
  for name, loud in (("character", 0.3), ("partner", 0.2)):
    wavfile.write(tmp_path / f"{name}.wav", 16_000, tone(2.0, loud=loud))
  c = recipe.get_config()
  c.inputs, c.size, c.scale = str(tmp_path), 16, 1
  c.text = "0:calm;1:smiles"
  causal = SETTINGS.causal
  c.stream.causal = dict(frames=causal.frames, sink=causal.sink, window=causal.window)
  c.part_seconds = 1.0
  return c


def test_the_video_has_every_frame_and_both_tracks(config, tmp_path):
  video = media.read_video(stream.stream_to_file(config, tmp_path / "out"))
  assert video.frames.shape == (1 + 4 * 12, 16, 16, 3)
  assert video.audio.shape[1] == 2
  assert len(video.audio) / 16_000 == pytest.approx(len(video.frames) / 24, abs=0.1)
  rows = [json.loads(x) for x in (tmp_path / "out" / "timings.jsonl").read_text().splitlines()]
  assert [row["chunk"] for row in rows] == [0, 1, 2, 3]
  assert {row["state"] for row in rows} == {"responding"}
  assert media.audio_video_offset(tmp_path / "out" / "stream.mp4") == pytest.approx(0, abs=0.001)
  page = (tmp_path / "out" / "stream.html").read_text()
  assert page.count("data:image/png") == 6


def test_a_killed_stream_goes_on_as_if_it_had_not_been(config, tmp_path, monkeypatch):
  whole = media.read_video(stream.stream_to_file(config, tmp_path / "whole")).frames
  make = stream.Session.advance

  def killed(session, **options):
    if session.pulled == 3:
      raise KeyboardInterrupt
    return make(session, **options)

  monkeypatch.setattr(stream.Session, "advance", killed)
  with pytest.raises(KeyboardInterrupt):
    stream.stream_to_file(config, tmp_path / "killed")
  monkeypatch.undo()
  monkeypatch.setattr(stream.loading, "load_stream", small_models)
  assert not (tmp_path / "killed" / "stream.mp4").exists()
  found = media.read_video(stream.stream_to_file(config, tmp_path / "killed")).frames
  np.testing.assert_array_equal(found, whole)


def test_repeated_sound_fills_any_length(config, tmp_path):
  config.minutes, config.repeat = 0.1, True
  video = media.read_video(stream.stream_to_file(config, tmp_path / "out"))
  assert len(video.frames) == 1 + 12 * 12


def test_a_stream_without_sound_idles(config, tmp_path):
  config.inputs, config.picture, config.seconds = "", str(tmp_path / "picture.png"), 1.0
  stream.stream_to_file(config, tmp_path / "out")
  rows = [json.loads(x) for x in (tmp_path / "out" / "timings.jsonl").read_text().splitlines()]
  assert {row["state"] for row in rows} == {"idle"}


def test_the_workdir_of_another_stream_is_left_alone(config, tmp_path):
  stream.stream_to_file(config, tmp_path / "out")
  config.text = "yawns"
  with pytest.raises(ValueError, match="out: holds the stream of another config"):
    stream.stream_to_file(config, tmp_path / "out")


def test_a_damaged_session_is_named(config, tmp_path):
  stream.stream_to_file(config, tmp_path / "out")
  saved = next((tmp_path / "out" / "parts").glob("*.session"))
  saved.write_bytes(saved.read_bytes()[:100])
  with pytest.raises(ValueError, match=r"00001.session: no saved session"):
    stream.stream_to_file(config, tmp_path / "out")
