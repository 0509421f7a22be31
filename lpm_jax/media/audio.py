"""Audio files -> float32 at 16 kHz. Decoded by PyAV (FFmpeg), resampled by soxr through librosa."""

import pathlib
import tempfile
from collections.abc import Iterator

import av
import librosa
import numpy as np
import soxr

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.media.files import MediaError, Path, check_readable

AUDIO = "an audio file (wav, mp3, m4a, flac, ...)"
SILENCE = 1e-3  # peak of what counts as silent: -60 dB of full scale
_MISSING_SECONDS = 0.1  # decoded this much less than the header promises: the file was cut


def read_audio(path: Path) -> np.ndarray:
  """One mono track: float32 [S] at 16 kHz in [-1, 1], channels averaged.

  Any rate and any number of channels. Raises MediaError for a file that is missing, empty, damaged
  or cut short, and for one without an audio stream.
  """
  return np.ascontiguousarray(read_channels(path).mean(axis=0))


def read_stereo_tracks(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """A two-track dialogue in one stereo file: (left, right) float32 [S] at 16 kHz.

  Left is the character (speak track), right the partner (listen track), as `write_video` is given
  them. Raises MediaError as `read_audio` does, and for a file that does not have two channels.
  """
  return _two(path, read_channels(path))


def spooled_audio(path: Path, folder: Path) -> np.ndarray:
  """`read_audio` of hours of sound: float32 [S], on disk and not in memory.

  Decoded block by block into a nameless file in `folder`, which goes when the array does, also when
  the process is killed.
  """
  return _spooled(path, folder, mono=True)[:, 0]


def spooled_stereo_tracks(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
  """`read_stereo_tracks`, on disk as in `spooled_audio`."""
  channels = _spooled(path, folder, mono=False).T
  return _two(path, channels)


def is_silent(audio: np.ndarray) -> bool:
  """Whether no sample reaches -60 dB of full scale."""
  step = 1 << 20
  return not any((np.abs(audio[i : i + step]) >= SILENCE).any() for i in range(0, len(audio), step))


def read_channels(path: Path) -> np.ndarray:
  """All channels: float32 [channels, S] at 16 kHz in [-1, 1]; raises as `read_audio` does."""
  rates, blocks = zip(*_blocks(path), strict=True)
  samples = np.concatenate(blocks, axis=1)
  if rates[0] != SAMPLE_RATE:
    samples = librosa.resample(samples, orig_sr=rates[0], target_sr=SAMPLE_RATE, res_type="soxr_hq")
  return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _two(path: Path, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  if len(channels) != 2:
    raise MediaError(path, f"{len(channels)} channel(s)", "two: left character, right partner")
  return channels[0], channels[1]


def _spooled(path: Path, folder: Path, *, mono: bool) -> np.ndarray:
  """Samples [S, channels] of a file, memory-mapped."""
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder) as file:
    blocks = _blocks(path)
    rate, block = next(blocks)
    columns = 1 if mono else len(block)
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, columns) if rate != SAMPLE_RATE else None
    while block is not None:
      _, following = next(blocks, (rate, None))
      samples = (block.mean(axis=0, keepdims=True) if mono else block).T.astype(np.float32)
      if resampler is not None:
        samples = resampler.resample_chunk(np.ascontiguousarray(samples), last=following is None)
      file.write(np.clip(samples, -1.0, 1.0).tobytes())
      block = following
    file.flush()
    return np.memmap(file, np.float32, "r").reshape(-1, columns)


def _blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
  """Rate of the file and float samples [channels, n], block by block; raises as `read_audio`."""
  check_readable(path, AUDIO)
  try:
    with av.open(str(path)) as container:
      if not container.streams.audio:
        kinds = sorted({stream.type for stream in container.streams})
        raise MediaError(path, f"no audio stream (streams: {', '.join(kinds) or 'none'})", AUDIO)
      stream, count = container.streams.audio[0], 0
      for block in _decoded(container, stream, path):
        if not np.isfinite(block).all():
          raise MediaError(path, "samples that are not finite", AUDIO)
        count += block.shape[1]
        yield stream.rate, block
      rate = stream.rate
      promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
  except (av.FFmpegError, ValueError) as error:
    if isinstance(error, MediaError):
      raise
    raise MediaError(
      path, f"a damaged or unknown file ({getattr(error, 'strerror', None) or error})", AUDIO
    ) from error
  if not count:
    raise MediaError(path, "an audio stream without samples", AUDIO)
  if promised - count / rate > _MISSING_SECONDS:
    found = f"{count / rate:.2f} s of audio under a header that promises {promised:.2f} s"
    raise MediaError(path, f"{found} (cut short)", "the whole file")


def _decoded(
  container: av.container.InputContainer, stream: av.AudioStream, path: Path
) -> Iterator[np.ndarray]:
  """Samples [channels, n], packet by packet."""
  to_float = av.AudioResampler(format="fltp")  # FFmpeg has a dozen formats of sample
  some = False
  for packet in container.demux(stream):
    if packet.is_corrupt:
      raise MediaError(path, "a packet that is cut off or damaged", "the whole file")
    for frame in packet.decode():
      some = True
      yield from (part.to_ndarray() for part in to_float.resample(frame))
  if some:
    yield from (part.to_ndarray() for part in to_float.resample(None))
