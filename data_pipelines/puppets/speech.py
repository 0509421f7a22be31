"""Speech from espeak-ng with the exact time of every phone, offline and deterministic.

The engine comes as a wheel (`espeakng-loader`, extra `data`) and is called through ctypes in its
synchronous mode with phone events (espeak-ng `speak_lib.h`).
"""

import _ctypes
import ctypes
import dataclasses
import functools
import itertools
import math
import pathlib
import threading

import numpy as np
from scipy import signal

from data_pipelines.clip import SAMPLE_RATE

PAUSE = "_"
LANGUAGES = ("en", "de", "fr", "es")

_ACCENTS = {"en": ("en", "en-us", "en-gb-scotland"), "de": ("de",), "fr": ("fr",), "es": ("es",)}
TRAIN_VARIANTS = ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m6", "m7") + (
  "Annie", "linda", "steph", "grandma", "Andy", "Michael", "Reed", "boris", "edward", "max",
)  # fmt: skip
HELD_OUT_VARIANTS = ("f5", "belinda", "shelby", "m5", "m8", "miguel")


def _voices(variants: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  return {
    language: tuple(f"{a}+{v}" for a, v in itertools.product(accents, variants))
    for language, accents in _ACCENTS.items()
  }


TRAIN_VOICES = _voices(TRAIN_VARIANTS)
HELD_OUT_VOICES = _voices(HELD_OUT_VARIANTS)

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_IPA_PHONE_EVENTS = 1 | 2
_EVENT_END_OF_LIST, _EVENT_PHONE = 0, 7
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_TAIL_S = 0.03
_FADE_S = 0.015


class SpeechError(RuntimeError):
  """The speech engine is missing or refused what it was asked for."""


@dataclasses.dataclass(frozen=True)
class Phone:
  """One phone: IPA name without stress marks ("_" is a pause), times in seconds, main stress."""

  name: str
  start_s: float
  end_s: float
  stressed: bool = False


@dataclasses.dataclass(frozen=True)
class Utterance:
  """Speech and its phones.

  Fields: audio float32 [S], 16 kHz mono, peak 0.9; phones without gaps from 0 to the end of the
  audio.
  """

  audio: np.ndarray
  phones: tuple[Phone, ...]

  @property
  def seconds(self) -> float:
    return len(self.audio) / SAMPLE_RATE


class _EventId(ctypes.Union):
  _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
  _fields_ = [
    ("type", ctypes.c_int),
    ("unique_identifier", ctypes.c_uint),
    ("text_position", ctypes.c_int),
    ("length", ctypes.c_int),
    ("audio_position", ctypes.c_int),  # milliseconds
    ("sample", ctypes.c_int),
    ("user_data", ctypes.c_void_p),
    ("id", _EventId),
  ]


_Callback = ctypes.CFUNCTYPE(
  ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@functools.cache
def _engine_paths() -> tuple[str, str]:
  try:
    import espeakng_loader
  except ImportError as error:
    raise SpeechError(
      "puppet speech needs the package espeakng-loader: pip install 'lpm_jax[data]'"
    ) from error
  return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


class _Engine:
  """The engine, freshly loaded: its oscillators remember earlier speech, and no call resets them.

  Loading anew takes about a millisecond and makes each utterance independent of what was said
  before. The library is one for the whole process, so one thread at a time has it.
  """

  alone = threading.Lock()

  def __enter__(self) -> ctypes.CDLL:
    library_path, data_path = _engine_paths()
    self.library = ctypes.CDLL(library_path)
    rate = self.library.espeak_Initialize(
      _AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), _IPA_PHONE_EVENTS
    )
    if rate <= 0:
      raise SpeechError(f"espeak-ng does not start with its data at {data_path}")
    self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath is noise; its seed was the time
    self.library.sample_rate = rate
    return self.library

  def __exit__(self, *_):
    self.library.espeak_Terminate()
    unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary
    unload(self.library._handle)


def _synthesise(text: str, voice: str, parameters: dict[int, int]):
  """Samples int16 at the engine's rate, that rate, and (milliseconds, IPA name) of every event."""
  blocks, events = [], []

  @_Callback
  def collect(samples, count, event):
    if samples and count > 0:
      blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
    for i in itertools.count():
      if event[i].type == _EVENT_END_OF_LIST:
        return 0
      if event[i].type == _EVENT_PHONE:
        name = bytes(event[i].id.string).decode(errors="ignore")
        events.append((event[i].audio_position, name))

  with _Engine.alone, _Engine() as engine:
    if engine.espeak_SetVoiceByName(voice.encode()) != 0:
      raise SpeechError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in parameters.items():
      engine.espeak_SetParameter(parameter, int(value), 0)
    engine.espeak_SetSynthCallback(collect)
    data = text.encode()
    status = engine.espeak_Synth(
      data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
    )
    rate = engine.sample_rate
  if status != 0 or not blocks:
    raise SpeechError(f"espeak-ng says nothing for {text!r} with voice {voice!r}")
  return np.concatenate(blocks), rate, events


@functools.lru_cache(maxsize=512)
def speak(
  text: str, voice: str, *, speed: int = 170, pitch: int = 50, pitch_range: int = 50
) -> Utterance:
  """Says `text`.

  Args:
    voice: an espeak-ng voice with an optional variant, "en-us+f3".
    speed: words per minute, 80..400.
    pitch, pitch_range: 0..100, 50 is the voice's own.

  Raises SpeechError when the engine is not installed, the voice is unknown or nothing is said.
  """
  _check_variant(voice)
  samples, rate, events = _synthesise(
    text, voice, {_RATE: speed, _PITCH: pitch, _RANGE: pitch_range}
  )
  if not any(_bare(name) for _, name in events):
    raise SpeechError(f"espeak-ng gives no phones for {text!r} with voice {voice!r}")
  divisor = math.gcd(rate, SAMPLE_RATE)
  audio = signal.resample_poly(
    samples.astype(np.float32) / 32768, SAMPLE_RATE // divisor, rate // divisor
  ).astype(np.float32)
  phones = _phones(events, len(audio) / SAMPLE_RATE)
  audio = audio[: round(phones[-1].end_s * SAMPLE_RATE)]
  fade = min(round(_FADE_S * SAMPLE_RATE), len(audio))
  audio[len(audio) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
  audio *= 0.9 / max(float(np.abs(audio).max()), 1e-6)
  audio.setflags(write=False)
  return Utterance(audio, phones)


def _check_variant(voice: str):
  """The engine would fall back silently from an unknown variant to the plain voice."""
  variant = voice.partition("+")[2]
  folder = pathlib.Path(_engine_paths()[1]) / "voices" / "!v"
  if variant and not (folder / variant).is_file():
    raise SpeechError(f"espeak-ng has no variant {variant!r}, wanted by voice {voice!r}")


def _bare(name: str) -> str:
  return name.strip("ˈˌ\u200d ")


def _phones(events: list[tuple[int, str]], seconds: float) -> tuple[Phone, ...]:
  """Phones that touch each other, from 0 to shortly after the last sound."""
  starts = [ms / 1000 for ms, _ in events]
  last = max(i for i, (_, name) in enumerate(events) if _bare(name))
  end = min(seconds, (starts[last + 1] if last + 1 < len(starts) else seconds) + _TAIL_S)
  end = round(end * SAMPLE_RATE) / SAMPLE_RATE
  phones = [Phone(PAUSE, 0.0, starts[0])] if starts[0] > 0 else []
  for i in range(last + 1):
    stop = end if i == last else starts[i + 1]
    if stop > starts[i]:
      name = events[i][1]
      phones.append(Phone(_bare(name) or PAUSE, starts[i], stop, "ˈ" in name))
  merged = []
  for phone in phones:
    if merged and phone.name == PAUSE == merged[-1].name:
      merged[-1] = Phone(PAUSE, merged[-1].start_s, phone.end_s)
    else:
      merged.append(phone)
  return tuple(merged)


def cut(utterance: Utterance, seconds: float) -> Utterance:
  """The utterance broken off after `seconds`, faded out over its last 60 ms."""
  samples = round(seconds * SAMPLE_RATE)
  if samples >= len(utterance.audio):
    return utterance
  audio = utterance.audio[:samples].copy()
  fade = min(round(0.06 * SAMPLE_RATE), samples)
  audio[samples - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
  end = samples / SAMPLE_RATE
  kept = tuple(
    dataclasses.replace(phone, end_s=min(phone.end_s, end))
    for phone in utterance.phones
    if phone.start_s < end
  )
  return Utterance(audio, kept)
