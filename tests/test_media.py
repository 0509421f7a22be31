import json
import pathlib
import re

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.clip import EXPRESSIONS, SAMPLE_RATE
from lpm_jax import media


def _tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def _write_audio(path, codec: str, channels: list[np.ndarray], rate: int = SAMPLE_RATE):
  planar = {"libmp3lame": "fltp", "aac": "fltp"}.get(codec, "s16p")
  data = np.stack(channels)
  data = data if planar == "fltp" else (data * 32767).astype(np.int16)
  layout = ("mono", "stereo")[len(channels) - 1]
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate, layout=layout)
    resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=1024)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=planar, layout=layout)
    frame.sample_rate = rate
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
      container.mux(stream.encode(part))
    container.mux(stream.encode(None))
  return path


def _fails(path, found: str):
  """The error names the file, then what was found and what was expected."""
  name = re.escape(pathlib.Path(path).name)
  return pytest.raises(media.MediaError, match=rf"{name}: found .*{found}.*, expected ")


@pytest.mark.parametrize(
  "name,codec,rate",
  [
    ("a.wav", "pcm_s16le", 16_000),
    ("a.wav", "pcm_s16le", 48_000),
    ("a.mp3", "libmp3lame", 44_100),
    ("a.m4a", "aac", 22_050),
    ("a.flac", "flac", 8_000),
  ],
)
def test_any_format_and_rate_becomes_16_khz_mono(tmp_path, name, codec, rate):
  path = _write_audio(tmp_path / name, codec, [_tone(1.5, rate)] * 2, rate)
  audio = media.read_audio(path)
  assert audio.dtype == np.float32 and audio.ndim == 1
  assert abs(len(audio) / SAMPLE_RATE - 1.5) < 0.1, "AAC fills up its first and last frame"
  spectrum = np.abs(np.fft.rfft(audio[4000:20000]))
  assert np.argmax(spectrum) == 440
  assert not media.is_silent(audio) and np.abs(audio).max() <= 1.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
  "name,codec",
  [("a.mp3", "libmp3lame"), ("a.wav", "pcm_s16le"), ("a.m4a", "aac"), ("a.flac", "flac")],
)
def test_a_file_cut_short_is_refused(tmp_path, name, codec, share):
  whole = _write_audio(tmp_path / name, codec, [_tone(2.0)]).read_bytes()
  path = tmp_path / f"cut_{name}"
  path.write_bytes(whole[: int(len(whole) * share)])
  with _fails(path, "(cut|damaged)"):
    media.read_audio(path)


def test_audio_that_is_none_is_refused(tmp_path):
  empty = tmp_path / "empty.wav"
  empty.touch()
  with _fails(empty, "0 bytes"):
    media.read_audio(empty)
  with _fails(tmp_path / "missing.wav", "no such file"):
    media.read_audio(tmp_path / "missing.wav")
  with _fails(tmp_path, "a folder"):
    media.read_audio(tmp_path)
  text = tmp_path / "text.mp3"
  text.write_text("not a sound " * 100)
  with _fails(text, "damaged or unknown"):
    media.read_audio(text)
  mute = tmp_path / "mute.mp4"
  media.write_video(mute, np.zeros((5, 16, 16, 3), np.uint8), 24)
  with _fails(mute, "no audio stream"):
    media.read_audio(mute)


def test_silence_is_told_from_a_quiet_voice(tmp_path):
  path = _write_audio(tmp_path / "silent.wav", "pcm_s16le", [np.zeros(16000, np.float32)])
  assert media.is_silent(media.read_audio(path))
  assert not media.is_silent(0.01 * _tone(1.0))
  assert media.is_silent(np.zeros(0, np.float32))


def test_stereo_tracks_stay_apart(tmp_path):
  path = _write_audio(tmp_path / "two.wav", "pcm_s16le", [_tone(1.0), np.zeros(16000, "f4")])
  character, partner = media.read_stereo_tracks(path)
  assert not media.is_silent(character) and media.is_silent(partner)
  mono = _write_audio(tmp_path / "one.wav", "pcm_s16le", [_tone(1.0)])
  with _fails(mono, r"1 channel"):
    media.read_stereo_tracks(mono)


@pytest.mark.parametrize(
  ("name", "codec", "rate"), [("a.mp3", "libmp3lame", 44_100), ("a.wav", "pcm_s16le", 16_000)]
)
def test_sound_on_disk_is_the_sound_in_memory(tmp_path, name, codec, rate):
  channels = [_tone(3.0, rate), 0.5 * _tone(3.0, rate, 900.0)]
  path = _write_audio(tmp_path / name, codec, channels, rate)
  tracks = [media.spooled_audio(path, tmp_path), *media.spooled_stereo_tracks(path, tmp_path)]
  expected = [media.read_audio(path), *media.read_stereo_tracks(path)]
  for found, whole in zip(tracks, expected, strict=True):
    assert isinstance(found.base, np.memmap) or isinstance(found, np.memmap)
    assert abs(len(found) - len(whole)) <= 1  # the resampler of a stream may end a sample later
    count = min(len(found), len(whole))
    np.testing.assert_allclose(found[:count], whole[:count], atol=2e-4)
  assert sorted(tmp_path.iterdir()) == [path]  # the files have no names


def test_sound_that_is_cut_short_is_not_spooled(tmp_path):
  path = _write_audio(tmp_path / "a.mp3", "libmp3lame", [_tone(1.5)] * 2)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(media.MediaError, match=r"a\.mp3: found "):
    media.spooled_audio(path, tmp_path)
  assert sorted(tmp_path.iterdir()) == [path]


def test_a_picture_is_turned_laid_over_grey_and_cut_square(tmp_path):
  wide = np.zeros((20, 40, 3), np.uint8)
  wide[:10, 10:30] = 255  # the upper half of the centre square
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
  picture = media.read_picture(tmp_path / "turned.png", 10)
  assert picture.shape == (10, 10, 3) and picture.dtype == np.uint8
  assert picture[:4].max() < 30 and picture[6:].min() > 225
  Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
  assert (media.read_picture(tmp_path / "clear.png", 8) == 128).all()
  Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
  assert (media.read_picture(tmp_path / "grey.png", 8) == 77).all()


def test_a_wide_size_cuts_the_centre(tmp_path):
  pixels = np.zeros((40, 40, 3), np.uint8)
  pixels[10:30] = 255
  Image.fromarray(pixels).save(tmp_path / "square.png")
  picture = media.read_picture(tmp_path / "square.png", (10, 20))
  assert picture.shape == (10, 20, 3)
  assert picture.min() > 200


def test_pictures_that_are_none_are_refused(tmp_path):
  (tmp_path / "empty.png").touch()
  (tmp_path / "text.png").write_text("hello")
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
    tmp_path / "whole.png"
  )
  (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
  for name, found in (
    ("empty.png", "0 bytes"),
    ("text.png", "no picture"),
    ("cut.png", "damaged"),
    ("missing.png", "no such file"),
  ):
    with _fails(tmp_path / name, found):
      media.read_picture(tmp_path / name, 8)


def test_a_reference_names_its_kind_and_label(tmp_path):
  path = tmp_path / "a:b.png"
  Image.new("RGB", (8, 8)).save(path)
  label = EXPRESSIONS.index("surprise")
  assert media.read_reference(f"{path}:expression:surprise", 8)[1:] == (2, label)
  assert media.read_reference(f"{path}:view:back", 8)[1:] == (1, 3)
  assert media.read_reference(f"{path}:body_view:front", 8)[1:] == (1, 0)
  assert media.read_reference(f"{path}:global", 8)[1:] == (0, 0)
  with pytest.raises(ValueError, match="'up', expected body view: one of front"):
    media.read_reference(f"{path}:view:up", 8)
  with pytest.raises(ValueError, match="a:b.png': expected PATH:KIND"):
    media.read_reference(str(path), 8)
  with _fails("gone.png", "no such file"):
    media.read_reference("gone.png:global", 8)


def _colourful(frames: int) -> np.ndarray:
  """Smooth gradients whose colours move: little to lose in compression."""
  t, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (frames, 32, 48)), indexing="ij")
  return (255 * np.stack([x, y, t], axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("fps", [24, 23.976, 30])
def test_a_written_video_reads_back(tmp_path, fps):
  frames, audio = _colourful(30), np.stack([_tone(30 / fps), _tone(30 / fps, hertz=880)], axis=1)
  media.write_video(tmp_path / "new" / "v.mp4", frames, fps, audio)
  back = media.read_video(tmp_path / "new" / "v.mp4")
  assert back.frames.shape == frames.shape
  assert abs(back.fps - fps) < 1e-3
  assert np.abs(back.frames.astype(int) - frames).mean() < 4
  assert back.audio.shape[1] == 2
  assert abs(len(back.audio) - len(audio)) <= 2 * 1024
  tones = [np.argmax(np.abs(np.fft.rfft(side[2000:10000]))) * 2 for side in back.audio.T]
  assert tones == [440, 880]
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["v.mp4"]


def test_a_video_is_enlarged_by_a_whole_factor(tmp_path):
  media.write_video(tmp_path / "v.mp4", _colourful(3)[:, :5, :7], 24, scale=4)
  assert media.read_video(tmp_path / "v.mp4").frames.shape == (3, 20, 28, 3)
  with pytest.raises(ValueError, match="7 x 5 pixels, expected even"):
    media.write_video(tmp_path / "odd.mp4", _colourful(3)[:, :5, :7], 24)
  assert not (tmp_path / "odd.mp4").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path):
  path = tmp_path / "v.txt"
  path.write_text("before")
  with pytest.raises(RuntimeError), media.written_whole(path) as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert path.read_text() == "before"
  assert [p.name for p in tmp_path.iterdir()] == ["v.txt"]
  media.check_writable(path)
  assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
  for target in (tmp_path, path / "below" / "v.mp4"):
    with _fails(target, "(a folder|Not a directory|File exists)"):
      media.check_writable(target)


def test_videos_stand_side_by_side_under_their_labels():
  wide = media.side_by_side([_colourful(2), 255 - _colourful(2)], ["one", "two"], scale=2)
  assert wide.shape[0] == 2 and wide.shape[2] == 2 * 2 * 48 and wide.shape[1] > 64
  assert wide[:, :-64].min() < 100, "there is a label"


def _turns_file(tmp_path, name, text):
  (tmp_path / name).write_text(text)
  return tmp_path / name


def test_json_and_rttm_turns_say_the_same(tmp_path):
  rttm = (
    "SPEAKER talk 1 0.50 1.00 <NA> <NA> ann <NA> <NA>\nSPEAKER talk 1 1.2 0.8 <NA> <NA> bob <NA>"
  )
  dicts = [
    {"speaker": "bob", "start": 1.2, "end": 2.0},
    {"speaker": "ann", "start": 0.5, "end": 1.5},
  ]
  lists = [[0.5, 1.5, "ann"], [1.2, 2.0, "bob"]]
  expected = [media.Turn(0.5, 1.5, "ann"), media.Turn(1.2, 2.0, "bob")]
  assert media.read_turns(_turns_file(tmp_path, "a.rttm", rttm)) == expected
  assert media.read_turns(_turns_file(tmp_path, "a.json", json.dumps(dicts))) == expected
  assert media.read_turns(_turns_file(tmp_path, "b.json", json.dumps(lists))) == expected
  for name, text in (
    ("a.json", "[[0, 1]]"),
    ("b.json", '{"start": 0}'),
    ("c.json", "nonsense"),
    ("d.json", "[]"),
    ("e.json", '[[2, 1, "ann"]]'),
    ("f.rttm", "SPEAKER talk 1 zero 1.0 <NA> <NA> ann"),
  ):
    with _fails(name, ""):
      media.read_turns(_turns_file(tmp_path, name, text))


def test_turns_split_a_mixed_track():
  audio = np.full(3 * SAMPLE_RATE, 0.5, np.float32)
  turns = [media.Turn(0.5, 1.5, "ann"), media.Turn(1.2, 2.0, "bob"), media.Turn(2.5, 9.0, "ann")]
  speak, listen = media.split_tracks(audio, turns, "ann")
  for track, seconds, value in (
    (speak, 0.4, 0),
    (speak, 1.0, 0.5),
    (speak, 1.3, 0.5),
    (speak, 1.8, 0),
    (speak, 2.9, 0.5),
    (listen, 1.0, 0),
    (listen, 1.3, 0.5),
    (listen, 1.8, 0.5),
    (listen, 2.2, 0),
    (listen, 2.9, 0),
  ):
    assert track[round(seconds * SAMPLE_RATE)] == value, seconds
  assert np.abs(np.diff(speak)).max() < 0.01, "no click at the ends of a turn"
  with pytest.raises(ValueError, match=r"'eve', expected one of the speakers \['ann', 'bob'\]"):
    media.split_tracks(audio, turns, "eve")


def test_timed_texts():
  assert media.parse_timed_texts("0:calm, looks left;4.5: smiles") == [
    (0.0, "calm, looks left"),
    (4.5, "smiles"),
  ]
  assert media.parse_timed_texts("smiles; then nods") == [(0.0, "smiles; then nods")]
  assert media.parse_timed_texts("") == [(0.0, "")]
  assert media.parse_timed_texts("2:nods;") == [(0.0, ""), (2.0, "nods")]
  with pytest.raises(ValueError, match="'nods', expected SECONDS:TEXT"):
    media.parse_timed_texts("0:calm;nods")
  with pytest.raises(ValueError, match="1.0 s after 2.0 s"):
    media.parse_timed_texts("2:nods;1:smiles")


@pytest.fixture
def folder(tmp_path):
  """Inputs as `data_pipelines.puppets.showcase` writes them."""
  (tmp_path / "references").mkdir()
  for name in ("picture", "references/global", "references/body_view-left"):
    Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
  _write_audio(tmp_path / "character.wav", "pcm_s16le", [_tone(1.0)])
  _write_audio(tmp_path / "partner.wav", "pcm_s16le", [_tone(2.0)])
  (tmp_path / "text.txt").write_text("0:calm;1:smiles\n")
  return tmp_path


def test_a_folder_of_inputs_is_read_and_overruled(folder):
  inputs = media.read_inputs(media.Request(inputs=str(folder), size=8))
  assert [r[1:] for r in inputs.references] == [(1, 1), (0, 0)]
  assert (len(inputs.speak_audio), len(inputs.listen_audio)) == (16000, 32000)
  assert inputs.texts == [(0.0, "calm"), (1.0, "smiles")]
  assert inputs.seconds == 2.0
  reference = f"{folder}/picture.png:view:back"
  inputs = media.read_inputs(
    media.Request(
      inputs=str(folder), references=f"{reference}, {reference}", text="nods", seconds=9
    )
  )
  assert [r[1:] for r in inputs.references] == [(1, 3)] * 2
  assert inputs.texts == [(0.0, "nods")] and inputs.seconds == 9


def test_one_file_holds_a_dialogue(folder):
  picture = str(folder / "picture.png")
  stereo = _write_audio(folder / "both.wav", "pcm_s16le", [_tone(1.0), 0 * _tone(1.0)])
  inputs = media.read_inputs(media.Request(picture=picture, dialogue_audio=str(stereo)))
  assert media.is_silent(inputs.listen_audio) and not media.is_silent(inputs.speak_audio)
  turns = _turns_file(folder, "turns.json", '[[0, 1, "ann"], [1, 2, "bob"]]')
  mixed = dict(picture=picture, dialogue_audio=str(folder / "partner.wav"))
  inputs = media.read_inputs(media.Request(**mixed, diarisation=str(turns), character="bob"))
  assert media.is_silent(inputs.speak_audio[:16000]) and media.is_silent(
    inputs.listen_audio[16000:]
  )
  with pytest.raises(ValueError, match="turns.json: character: found 'eve'"):
    media.read_inputs(media.Request(**mixed, diarisation=str(turns), character="eve"))


def test_requests_that_cannot_be_met_name_the_field_or_file(folder):
  picture, sound = str(folder / "picture.png"), str(folder / "partner.wav")
  silent = _write_audio(folder / "silent.wav", "pcm_s16le", [np.zeros(16000, "f4")])
  for fields, message in (
    ({}, "picture: found none"),
    (dict(picture=picture), "seconds: found 0"),
    (dict(picture=picture, speak_audio=str(silent)), "silent.wav: found only silence"),
    (dict(picture=picture, listen_audio=str(silent)), "silent.wav: found only silence"),
    (
      dict(picture=picture, seconds=1, references="gone.png:global"),
      "gone.png: found no such file",
    ),
    (dict(picture=picture, speak_audio=sound, dialogue_audio=sound), "dialogue_audio: expected"),
    (dict(picture=picture, speak_audio=sound, diarisation="x"), "diarisation: expected"),
    (dict(inputs=str(folder / "gone")), "gone: found no such folder"),
  ):
    with pytest.raises(ValueError, match=message):
      media.read_inputs(media.Request(**fields))
