"""Audio files -> float32 at 16 kHz. Decoded by PyAV (FFmpeg), resampled by soxr through librosa."""

import av
import librosa
import numpy as np

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
  channels = read_channels(path)
  if len(channels) != 2:
    raise MediaError(path, f"{len(channels)} channel(s)", "two: left character, right partner")
  return channels[0], channels[1]


def is_silent(audio: np.ndarray) -> bool:
  """Whether no sample reaches -60 dB of full scale."""
  return not audio.size or float(np.abs(audio).max()) < SILENCE


def read_channels(path: Path) -> np.ndarray:
  """All channels: float32 [channels, S] at 16 kHz in [-1, 1]; raises as `read_audio` does."""
  check_readable(path, AUDIO)
  try:
    with av.open(str(path)) as container:
      if not container.streams.audio:
        kinds = sorted({stream.type for stream in container.streams})
        raise MediaError(path, f"no audio stream (streams: {', '.join(kinds) or 'none'})", AUDIO)
      samples, rate, promised = _decode(container, path)
  except (av.FFmpegError, ValueError) as error:
    if isinstance(error, MediaError):
      raise
    raise MediaError(
      path, f"a damaged or unknown file ({error.strerror or error})", AUDIO
    ) from error
  seconds = samples.shape[1] / rate
  if promised - seconds > _MISSING_SECONDS:
    found = f"{seconds:.2f} s of audio under a header that promises {promised:.2f} s"
    raise MediaError(path, f"{found} (cut short)", "the whole file")
  if not np.isfinite(samples).all():
    raise MediaError(path, "samples that are not finite", AUDIO)
  if rate != SAMPLE_RATE:
    samples = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
  return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _decode(container: av.container.InputContainer, path: Path) -> tuple[np.ndarray, int, float]:
  """Samples float32 [channels, S], the rate of the file, seconds the header promises."""
  stream = container.streams.audio[0]
  to_float = av.AudioResampler(format="fltp")  # FFmpeg has a dozen formats of sample
  parts = []
  for packet in container.demux(stream):
    if packet.is_corrupt:
      raise MediaError(path, "a packet that is cut off or damaged", "the whole file")
    for frame in packet.decode():
      parts += [part.to_ndarray() for part in to_float.resample(frame)]
  parts += [part.to_ndarray() for part in to_float.resample(None)] if parts else []
  if not parts or not sum(part.shape[1] for part in parts):
    raise MediaError(path, "an audio stream without samples", AUDIO)
  promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
  return np.concatenate(parts, axis=1), stream.rate, promised
