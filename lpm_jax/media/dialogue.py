"""Who speaks when, and what the text says when: small text formats beside the audio."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.media.files import MediaError, Path, check_readable

_JSON = '[{"start": seconds, "end": seconds, "speaker": name}, ...]'
_RTTM = "SPEAKER file channel start duration <NA> <NA> name ..."
_FADE = SAMPLE_RATE // 100  # a hard cut clicks, and a click opens the mouth
_TIMED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:(.*)", re.DOTALL)


class Turn(NamedTuple):
  """One stretch of speech, in seconds."""

  start: float
  end: float
  speaker: str


def read_turns(path: Path) -> list[Turn]:
  """A diarisation file: RTTM (NIST) by its suffix .rttm, otherwise JSON; in order of time.

  JSON is a list of {"start", "end", "speaker"} or of [start, end, speaker]. Raises MediaError for
  anything else, for a turn that does not end after its start and for a file without turns.
  """
  path = pathlib.Path(path)
  expected = _RTTM if path.suffix.lower() == ".rttm" else _JSON
  check_readable(path, expected)
  try:
    text = path.read_text(encoding="utf-8")
    turns = _rttm_turns(text) if expected is _RTTM else _json_turns(text)
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise MediaError(path, f"something else ({error})", expected) from error
  for turn in turns:
    if not 0 <= turn.start < turn.end:
      raise MediaError(path, f"a turn from {turn.start} to {turn.end} s", "0 <= start < end")
  if not turns:
    raise MediaError(path, "no turn", expected)
  return sorted(turns)


def _rttm_turns(text: str) -> list[Turn]:
  turns = []
  for line in text.splitlines():
    fields = line.split()
    if fields and fields[0] == "SPEAKER":
      start, seconds = float(fields[3]), float(fields[4])
      turns.append(Turn(start, start + seconds, fields[7]))
  return turns


def _json_turns(text: str) -> list[Turn]:
  turns = []
  for item in json.loads(text):
    values = [item[name] for name in Turn._fields] if isinstance(item, dict) else item
    start, end, speaker = values
    turns.append(Turn(float(start), float(end), str(speaker)))
  return turns


def split_tracks(
  audio: np.ndarray, turns: Sequence[Turn], character: str
) -> tuple[np.ndarray, np.ndarray]:
  """One mixed track and its turns -> (speak, listen) float32 [S] at 16 kHz.

  The turns of `character` go to the speak track, all others to the listen track, silence elsewhere;
  where they overlap both tracks hold the mixture. Raises ValueError when `character` has no turn.
  """
  speakers = sorted({turn.speaker for turn in turns})
  if character not in speakers:
    raise ValueError(f"character: found {character!r}, expected one of the speakers {speakers}")
  gains = np.zeros((2, len(audio)), np.float32)
  for turn in turns:
    first, last = (round(t * SAMPLE_RATE) for t in (turn.start, turn.end))
    track = gains[0 if turn.speaker == character else 1]
    inside = np.arange(max(min(last, len(audio)) - first, 0))
    ramp = np.minimum(inside + 1, last - first - inside) / _FADE
    part = track[first : first + len(inside)]
    np.maximum(part, np.minimum(ramp, 1.0), out=part)
  return gains[0] * audio, gains[1] * audio


def parse_timed_texts(text: str) -> list[tuple[float, str]]:
  """Reads "0:calm, looks left;4.5:smiles" as [(0.0, "calm, looks left"), (4.5, "smiles")].

  Text without a time holds from the start. Raises ValueError for a part without a time behind one
  that has a time, and for times that do not rise.
  """
  if not _TIMED.fullmatch(text.split(";")[0]):
    return [(0.0, text.strip())]
  texts: list[tuple[float, str]] = []
  for part in text.split(";"):
    if not part.strip():
      continue
    match = _TIMED.fullmatch(part)
    if match is None:
      raise ValueError(
        f"text: found {part.strip()!r}, expected SECONDS:TEXT as in the parts before"
      )
    start = float(match[1])
    if texts and start <= texts[-1][0]:
      raise ValueError(f"text: found {start} s after {texts[-1][0]} s, expected rising times")
    texts.append((start, match[2].strip()))
  return texts if texts[0][0] == 0.0 else [(0.0, ""), *texts]
