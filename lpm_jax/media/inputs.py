"""What a person brings for one video, named by paths and words, read and checked as a whole."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.media.audio import (
  AUDIO,
  is_silent,
  read_audio,
  read_stereo_tracks,
  spooled_audio,
  spooled_stereo_tracks,
)
from lpm_jax.media.dialogue import parse_timed_texts, read_turns, split_tracks
from lpm_jax.media.files import MediaError, Path
from lpm_jax.media.picture import PICTURE, Reference, read_picture, read_reference


@dataclasses.dataclass(frozen=True)
class Request:
  """Paths and words that describe one video; an empty string leaves a thing out.

  Attributes:
    inputs: folder with picture.*, references/KIND[-LABEL].*, character.*, partner.* (audio) and
      text.txt; the other fields overrule what it holds.
    picture: the main picture, the first frame.
    references: "path:kind[:label]" each, separated by commas or as a list.
    speak_audio, listen_audio: tracks of the character and of the partner, any format and rate.
    dialogue_audio: both in one file instead: stereo (left character, right partner), or mixed when
      `diarisation` says who speaks when.
    diarisation: RTTM or JSON turns of `dialogue_audio`.
    character: which of its speakers the character is.
    text: what the character does; timed as "0:calm;4.5:smiles".
    seconds: length of the video; 0 for that of the longer track.
    size: height and width in pixels that the model was trained on; one number for a square.
  """

  inputs: str = ""
  picture: str = ""
  references: str | tuple[str, ...] = ()
  speak_audio: str = ""
  listen_audio: str = ""
  dialogue_audio: str = ""
  diarisation: str = ""
  character: str = ""
  text: str = ""
  seconds: float = 0.0
  size: int | tuple[int, int] = 64

  @classmethod
  def from_config(cls, config: Mapping[str, object]) -> "Request":
    """The request in a config, which may hold other things too."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: config[name] for name in names & set(config)})


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What a request names: picture uint8 [H, W, 3], audio float32 [S] at 16 kHz, timed texts."""

  picture: np.ndarray
  references: tuple[Reference, ...]
  speak_audio: np.ndarray
  listen_audio: np.ndarray
  texts: list[tuple[float, str]]
  seconds: float


def read_inputs(request: Request, spool: Path | None = None) -> Inputs:
  """Reads everything; warns of a silent side of a dialogue.

  With a folder `spool` the tracks lie on disk there, memory-mapped, and hours of them cost no
  memory; a diarised dialogue is held in memory all the same.

  Raises MediaError naming the file that cannot be used (a track that is named but silent is one),
  and ValueError naming the field that is missing or contradicts another.
  """
  if request.inputs:
    request = _with_folder(request)
  if not request.picture:
    raise ValueError("picture: found none, expected the path of the main picture")
  specs = request.references
  specs = [s for s in specs.split(",") if s.strip()] if isinstance(specs, str) else specs
  picture = read_picture(request.picture, request.size)
  references = tuple(read_reference(spec.strip(), request.size) for spec in specs)
  texts = parse_timed_texts(request.text)
  speak, listen = _read_tracks(request, spool)
  seconds = request.seconds or max(len(speak), len(listen)) / SAMPLE_RATE
  if not seconds > 0:
    raise ValueError(f"seconds: found {seconds}, expected a length, or audio that has one")
  return Inputs(picture, references, speak, listen, texts, seconds)


def _read_tracks(request: Request, spool: Path | None) -> tuple[np.ndarray, np.ndarray]:
  apart = request.speak_audio or request.listen_audio
  if request.diarisation and not request.dialogue_audio:
    raise ValueError("diarisation: expected dialogue_audio, the track that its turns belong to")
  if request.dialogue_audio and apart:
    raise ValueError(f"dialogue_audio: expected either it or single tracks, found {apart!r} too")
  if not request.dialogue_audio:
    return tuple(_read_track(request, field, spool) for field in ("speak_audio", "listen_audio"))
  path = request.dialogue_audio
  if request.diarisation:
    mixed, turns = read_audio(path), read_turns(request.diarisation)
    try:
      tracks = split_tracks(mixed, turns, request.character)
    except ValueError as error:
      raise ValueError(f"{request.diarisation}: {error}") from error
  else:
    tracks = spooled_stereo_tracks(path, spool) if spool else read_stereo_tracks(path)
  for audio, side, effect in zip(
    tracks, ("character", "partner"), ("speak", "listen"), strict=True
  ):
    if is_silent(audio):
      logging.warning("%s: the %s's side is silent: nothing to %s to", path, side, effect)
  return tracks


def _read_track(request: Request, field: str, spool: Path | None) -> np.ndarray:
  path = getattr(request, field)
  if not path:
    return np.zeros(0, np.float32)
  audio = spooled_audio(path, spool) if spool else read_audio(path)
  if is_silent(audio):
    raise MediaError(
      path,
      "only silence (no sample above -60 dB)",
      f"sound, or an empty {field} for a silent track",
    )
  return audio


def _with_folder(request: Request) -> Request:
  """The request with its empty fields filled from the folder `inputs`."""
  folder = pathlib.Path(request.inputs)
  if not folder.is_dir():
    raise MediaError(folder, "no such folder", "a folder with picture.*, character.*, partner.*")
  found = {"picture": _only(folder, "picture", PICTURE)}
  if not request.dialogue_audio:
    found["speak_audio"] = _only(folder, "character", AUDIO)
    found["listen_audio"] = _only(folder, "partner", AUDIO)
  pictures = (p for p in sorted((folder / "references").glob("*")) if not p.name.startswith("."))
  found["references"] = tuple(f"{p}:{p.stem.replace('-', ':', 1)}" for p in pictures)
  text = folder / "text.txt"
  found["text"] = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
  empty = {name: value for name, value in found.items() if not getattr(request, name)}
  return dataclasses.replace(request, **empty)


def _only(folder: pathlib.Path, stem: str, expected: str) -> str:
  """The file `stem`.* of a folder, "" when there is none."""
  files = sorted(folder.glob(f"{stem}.*"))
  if len(files) > 1:
    names = ", ".join(file.name for file in files)
    raise MediaError(folder, f"{names}", f"one {stem}.*: {expected}")
  return str(files[0]) if files else ""
