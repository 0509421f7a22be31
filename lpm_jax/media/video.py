"""Frames and audio -> mp4 (H.264, AAC), and back."""

import contextlib
import fractions
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import (
  ColorPrimaries,
  ColorRange,
  Colorspace,
  ColorTrc,
  Interpolation,
)
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.media.files import MediaError, Path, check_readable, written_whole

VIDEO = "a video file"
_RESAMPLING = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
_AUDIO_BLOCK = 1024  # samples of an AAC frame
_BIT_RATE = 96_000


class Video(NamedTuple):
  """A decoded video: frames uint8 [T, H, W, 3], frames per second, audio [S, channels]."""

  frames: np.ndarray
  fps: float
  audio: np.ndarray | None


def write_video(
  path: Path,
  frames: np.ndarray,
  fps: float,
  audio: np.ndarray | None = None,
  *,
  scale: int = 1,
  resampling: str = "lanczos",
  crf: int = 14,
):
  """Writes an mp4 that every browser plays, whole or not at all.

  Args:
    frames: uint8 [T, H, W, 3]; H and W times `scale` even (4:2:0 chroma).
    audio: float32 at 16 kHz, mono [S] or stereo [S, 2]: left the character, right the partner.
    scale: whole factor of enlargement; 64x64 is tiny to look at.
    resampling: of the enlargement, "lanczos" or "nearest".
    crf: quality of x264; 14 keeps small faces free of visible artefacts.

  Raises ValueError for wrong arrays and MediaError when the file cannot be written.
  """
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
    raise ValueError(f"frames: found {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]")
  if resampling not in _RESAMPLING:
    raise ValueError(f"resampling: found {resampling!r}, expected one of {list(_RESAMPLING)}")
  height, width = (side * scale for side in frames.shape[1:3])
  if height % 2 or width % 2:
    raise ValueError(f"frames: found {width} x {height} pixels, expected even sides")
  if audio is not None and (audio.ndim > 2 or audio.shape[1:] not in ((), (1,), (2,))):
    raise ValueError(f"audio: found shape {audio.shape}, expected [S] or [S, 2]")
  rate = fractions.Fraction(fps).limit_denominator(1001)
  with written_whole(path) as temporary:
    try:
      with av.open(
        str(temporary), "w", format="mp4", options={"movflags": "+faststart"}
      ) as container:
        picture = _video_stream(container, rate, width, height, crf)
        sound = None if audio is None else _audio_stream(container, audio)
        for frame in _enlarged(frames, scale, _RESAMPLING[resampling]):
          image = av.VideoFrame.from_ndarray(frame, format="rgb24")
          image = image.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
          container.mux(picture.encode(image))
        container.mux(picture.encode(None))
        if sound is not None:
          _write_audio(container, sound, audio)
    except av.FFmpegError as error:
      raise MediaError(path, f"a failed write ({error.strerror})", "space for a video") from error


def _video_stream(
  container: av.container.OutputContainer, rate: fractions.Fraction, w: int, h: int, crf: int
) -> av.VideoStream:
  stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
  stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
  # Without these tags players guess the matrix from the size, and skin turns greenish.
  stream.codec_context.colorspace = Colorspace.ITU709
  stream.codec_context.color_primaries = ColorPrimaries.BT709
  stream.codec_context.color_trc = ColorTrc.BT709
  stream.codec_context.color_range = ColorRange.MPEG
  return stream


def _audio_stream(container: av.container.OutputContainer, audio: np.ndarray) -> av.AudioStream:
  layout = "stereo" if audio.ndim == 2 and audio.shape[1] == 2 else "mono"
  stream = container.add_stream("aac", rate=SAMPLE_RATE, layout=layout)
  stream.bit_rate = _BIT_RATE
  return stream


def _write_audio(
  container: av.container.OutputContainer, stream: av.AudioStream, audio: np.ndarray
):
  for start in range(0, len(audio), _AUDIO_BLOCK):
    block = np.atleast_2d(audio[start : start + _AUDIO_BLOCK].T)
    block = np.ascontiguousarray(block, np.float32)
    frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=stream.layout.name)
    frame.sample_rate = SAMPLE_RATE
    frame.pts = start
    frame.time_base = fractions.Fraction(1, SAMPLE_RATE)
    container.mux(stream.encode(frame))
  container.mux(stream.encode(None))


def join_videos(path: Path, parts: Sequence[Path], audio: np.ndarray):
  """Puts silent videos of `write_video` one after the other, not encoded again, under one sound.

  Args:
    path: mp4 that is written, whole or not at all.
    parts: mp4 files of one size and frame rate.
    audio: float32 at 16 kHz, mono [S] or stereo [S, 2].

  Raises MediaError when a part cannot be read or the file cannot be written.
  """
  with written_whole(path) as temporary:
    try:
      with av.open(
        str(temporary), "w", format="mp4", options={"movflags": "+faststart"}
      ) as container:
        picture, start = None, 0
        for part in parts:
          check_readable(part, VIDEO)
          with av.open(str(part)) as source:
            if picture is None:
              picture = container.add_stream_from_template(source.streams.video[0])
              sound = _audio_stream(container, audio)
            start = _append(container, picture, source, start)
        _write_audio(container, sound, audio)
    except av.FFmpegError as error:
      raise MediaError(
        path, f"a failed join ({error.strerror})", "space and whole parts"
      ) from error


def _append(
  container: av.container.OutputContainer,
  picture: av.VideoStream,
  source: av.container.InputContainer,
  start: int,
) -> int:
  """Copies the packets of a part behind `start`; returns where it ends, in ticks of the part."""
  end = start
  for packet in source.demux(video=0):
    if packet.dts is None:
      continue
    packet.pts, packet.dts = packet.pts + start, packet.dts + start
    end = max(end, packet.pts + packet.duration)
    packet.stream = picture
    container.mux(packet)
  return end


def read_video(path: Path) -> Video:
  """All frames and samples of a video. Raises MediaError for a file that holds none."""
  frames, audio = [], []
  with _opened(path) as container:
    fps = float(container.streams.video[0].average_rate)
    for frame in container.decode():
      if isinstance(frame, av.VideoFrame):
        frames.append(frame.to_ndarray(format="rgb24"))
      else:
        audio.append(frame.to_ndarray().T)
  return Video(np.stack(frames), fps, np.concatenate(audio) if audio else None)


def read_frames(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
  """The frames of a video one at a time, uint8 [height, width, 3], as means over areas.

  For videos of any length. Raises MediaError for a file that holds none, or breaks off.
  """
  how = dict(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA)
  with _opened(path) as container:
    container.streams.video[0].thread_type = "AUTO"
    for frame in container.decode(video=0):
      yield frame.reformat(**how).to_ndarray()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
  """A file with a video stream; what is wrong with it is a MediaError, also while it is read."""
  check_readable(path, VIDEO)
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise MediaError(path, "no video stream", VIDEO)
      yield container
  except av.FFmpegError as error:
    raise MediaError(path, f"a damaged or unknown file ({error.strerror})", VIDEO) from error


def audio_video_offset(path: Path) -> float:
  """Seconds by which the picture of a file begins after its sound, from the times of its packets.

  The sound is counted from its first sample: encoders put silence before it, with times below zero.
  Raises MediaError for a file without both.
  """
  check_readable(path, VIDEO)
  with av.open(str(path)) as container:
    first = {}
    for stream in (*container.streams.video[:1], *container.streams.audio[:1]):
      first[stream.type] = float((stream.start_time or 0) * stream.time_base)
    if len(first) < 2:
      raise MediaError(path, f"{', '.join(first) or 'no'} streams", "picture and sound")
  return first["video"] - first["audio"]


def side_by_side(
  videos: Sequence[np.ndarray], labels: Sequence[str], *, scale: int = 4
) -> np.ndarray:
  """Videos uint8 [T, H, W, 3] of one shape next to each other, enlarged, each under its label.

  Returns uint8 [T, H * scale + strip, W * scale * len(videos), 3], ready for `write_video`.
  """
  wide = np.concatenate(videos, axis=2)
  tall = np.stack(list(_enlarged(wide, scale, Image.Resampling.LANCZOS)))
  strip = 2 * max(8, videos[0].shape[2] * scale // 24)
  header = Image.new("RGB", (tall.shape[2], strip), "white")
  draw = ImageDraw.Draw(header)
  for i, label in enumerate(labels):
    centre = (i + 0.5) * tall.shape[2] / len(videos)
    draw.text((centre, strip / 2), label, "black", ImageFont.load_default(strip * 0.6), anchor="mm")
  top = np.broadcast_to(np.asarray(header), (len(tall), *np.asarray(header).shape))
  return np.concatenate([top, tall], axis=1)


def _enlarged(frames: np.ndarray, scale: int, resampling: Image.Resampling) -> Iterator[np.ndarray]:
  size = (frames.shape[2] * scale, frames.shape[1] * scale)
  for frame in frames:
    yield frame if scale == 1 else np.asarray(Image.fromarray(frame).resize(size, resampling))
