"""The Clip record: the one contract between data and everything else.

A `Clip` is one decoded training example; an `EncodedClip` carries VAE latents in place of pixels.
A `Trajectory` is an encoded clip as a teacher makes it, `Candidates` is one that a model made
several times, a `Preference` one with the better and the worse of two of these.
All check themselves on construction and name the field that is wrong, the clip and, where known,
its file.
"""

import dataclasses

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike

SAMPLE_RATE = 16_000
FEATURES_PER_SECOND = 50  # of wav2vec 2.0
STATES = ("idle", "speaking", "listening")
REFERENCE_KINDS = ("global", "body view", "expression")
VIEWS = ("front", "left", "right", "back")
EXPRESSIONS = (
  "neutral",
  "happiness",
  "sadness",
  "anger",
  "surprise",
  "fear",
  "disgust",
  "contempt",
)
EMOTIONS = EXPRESSIONS
TWIN = "-twin"  # ends the clip_id of one that differs from another clip in its looks alone
LABELS_OF_KIND = (1, len(VIEWS), len(EXPRESSIONS))


class ClipError(ValueError):
  """A clip breaks the contract. The message names field, clip, file, found and expected."""


def audio_samples(frames: int, fps: float = 24.0) -> int:
  """Samples at 16 kHz that belong to `frames` video frames."""
  return round(frames / fps * SAMPLE_RATE)


def fitted_audio(audio: np.ndarray, samples: int) -> np.ndarray:
  """The first `samples` of audio [S] as float32, continued with silence where it is shorter."""
  return np.pad(audio[:samples], (0, max(0, samples - len(audio)))).astype(np.float32)


def fitted_rows(rows: np.ndarray, count: int) -> np.ndarray:
  """The first `count` rows, followed by zeros where there are fewer; a view where there are not."""
  if len(rows) >= count:
    return rows[:count]
  fitted = np.zeros((count, *rows.shape[1:]), rows.dtype)
  fitted[: len(rows)] = rows
  return fitted


def latent_frames(frames: int) -> int:
  """Latent frames of a clip of 1 + 4k video frames (k + 1 of them)."""
  if frames < 1 or (frames - 1) % 4:
    raise ValueError(f"a clip has 1 + 4k video frames, found {frames}")
  return (frames - 1) // 4 + 1


@dataclasses.dataclass(frozen=True)
class Clip:
  """One decoded example.

  Shapes: video uint8 [T, H, W, 3]; speak_audio, listen_audio float32 [T_audio] mono 16 kHz in
  [-1, 1], silence where the character or the partner is silent; state int8 [T] (index in STATES);
  references uint8 [R, H_r, W_r, 3] with reference_kind and reference_label int32 [R] (index in
  REFERENCE_KINDS, then in VIEWS or EXPRESSIONS; 0 for the global one). `truth` holds what only a
  renderer knows (puppets: pose [T, 14], emotion [T], attributes, events); it is empty for real
  video.
  """

  clip_id: str
  character_id: str
  style: str
  source: str
  consent: str
  fps: float
  text: str
  video: np.ndarray
  speak_audio: np.ndarray
  listen_audio: np.ndarray
  state: np.ndarray
  references: np.ndarray
  reference_kind: np.ndarray
  reference_label: np.ndarray
  truth: dict = dataclasses.field(default_factory=dict)
  file: str = ""

  def __post_init__(self):
    check = _Checker(self.clip_id, self.file)
    check.array("video", self.video, np.uint8, (None, None, None, 3))
    _check_common(self, check, frames=self.video.shape[0])
    check.array("references", self.references, np.uint8, (None, None, None, 3))
    _check_references(self, check)


@dataclasses.dataclass(frozen=True)
class EncodedClip:
  """A clip with latents [F, h, w, C] for pixels, references [R, h_r, w_r, C] likewise.

  Both are float32, or both bfloat16: what is stored in half stays so until the step. Where frozen
  encoders have run: text_features [L, D_text] of the tokens the text has, and speak_features,
  listen_features [S50, layers + 1, width], 50 a second, bfloat16 all.
  """

  clip_id: str
  character_id: str
  style: str
  source: str
  consent: str
  fps: float
  text: str
  latents: np.ndarray
  speak_audio: np.ndarray
  listen_audio: np.ndarray
  state: np.ndarray
  references: np.ndarray
  reference_kind: np.ndarray
  reference_label: np.ndarray
  text_features: np.ndarray | None = None
  speak_features: np.ndarray | None = None
  listen_features: np.ndarray | None = None
  truth: dict = dataclasses.field(default_factory=dict)
  file: str = ""

  def __post_init__(self):
    check = _Checker(self.clip_id, self.file)
    check.array("latents", self.latents, (np.float32, bfloat16), (None, None, None, None))
    check.finite("latents", self.latents)
    _check_common(self, check, frames=4 * (self.latents.shape[0] - 1) + 1)
    check.array("references", self.references, self.latents.dtype, (None, None, None, None))
    check.finite("references", self.references)
    _check_references(self, check)
    if self.text_features is not None:
      check.array("text_features", self.text_features, bfloat16, (None, None))
      check.finite("text_features", self.text_features)
    for field in ("speak_features", "listen_features"):
      if getattr(self, field) is not None:
        _check_features(self, field, check)


@dataclasses.dataclass(frozen=True)
class Trajectory(EncodedClip):
  """An encoded clip with points of a teacher's way from noise to its latents.

  trajectory float16 or bfloat16 [P, F, h, w, C]: the first F latents at P falling timesteps, which
  the folder of the record names; the last point is the teacher's result.
  """

  trajectory: np.ndarray = dataclasses.field(kw_only=True)

  def __post_init__(self):
    super().__post_init__()
    check = _Checker(self.clip_id, self.file)
    _check_made(self, "trajectory", check, leading=2)
    if len(self.trajectory) < 2:
      check.fail("trajectory", f"{len(self.trajectory)} points", "at least 2")

  @classmethod
  def of(cls, clip: EncodedClip, trajectory: np.ndarray) -> "Trajectory":
    """The clip with its points."""
    return cls(**_encoded_fields(clip), trajectory=trajectory)


Measurements = dict[str, float | None]  # by dimension; None: the clip decides nothing there


@dataclasses.dataclass(frozen=True)
class Candidates(EncodedClip):
  """An encoded clip with what a model made under its conditions from several seeds.

  candidates float16 or bfloat16 [N, F, h, w, C]: the first F latents, N times, two at least.
  measured: the measurements of each, or none at all. The references are those that the model saw.
  """

  candidates: np.ndarray = dataclasses.field(kw_only=True)
  measured: list[Measurements] = dataclasses.field(kw_only=True)

  def __post_init__(self):
    super().__post_init__()
    check = _Checker(self.clip_id, self.file)
    _check_made(self, "candidates", check, leading=2)
    count = len(self.candidates)
    if count < 2:
      check.fail("candidates", count, "at least 2")
    if len(self.measured) not in (0, count):
      check.fail("measured", f"{len(self.measured)} of {count} candidates", "all or none")

  @classmethod
  def of(
    cls, clip: EncodedClip, candidates: np.ndarray, measured: list[Measurements]
  ) -> "Candidates":
    """The clip with what was made of it."""
    return cls(**_encoded_fields(clip), candidates=candidates, measured=measured)


@dataclasses.dataclass(frozen=True)
class Preference(EncodedClip):
  """An encoded clip with two of its candidates, of which one is preferred.

  winner, loser float16 or bfloat16 [F, h, w, C]; chosen: their places among the candidates; better:
  the dimensions in which the winner is better; judge: "measurements" or "people"; measured: the
  measurements of winner and loser, or none.
  """

  winner: np.ndarray = dataclasses.field(kw_only=True)
  loser: np.ndarray = dataclasses.field(kw_only=True)
  chosen: list[int] = dataclasses.field(kw_only=True)
  better: list[str] = dataclasses.field(kw_only=True)
  judge: str = dataclasses.field(kw_only=True)
  measured: list[Measurements] = dataclasses.field(kw_only=True)

  def __post_init__(self):
    super().__post_init__()
    check = _Checker(self.clip_id, self.file)
    for field in ("winner", "loser"):
      _check_made(self, field, check, leading=1)
    if self.loser.shape != self.winner.shape:
      check.fail("loser", f"shape {self.loser.shape}", f"the winner's {self.winner.shape}")
    if not self.better:
      check.fail("better", "no dimension", "at least one")

  @classmethod
  def of(
    cls, candidates: Candidates, winner: int, loser: int, better: list[str], judge: str
  ) -> "Preference":
    """Two of the candidates of a clip, by their places."""
    return cls(
      **_encoded_fields(candidates),
      winner=candidates.candidates[winner],
      loser=candidates.candidates[loser],
      chosen=[winner, loser],
      better=list(better),
      judge=judge,
      measured=[candidates.measured[i] for i in (winner, loser)] if candidates.measured else [],
    )


def _encoded_fields(clip: EncodedClip) -> dict[str, object]:
  """What an encoded clip has, whatever else the record holds."""
  return {field.name: getattr(clip, field.name) for field in dataclasses.fields(EncodedClip)}


class _Checker:
  """Raises ClipError with one wording for every field."""

  def __init__(self, clip_id: str, file: str):
    self.where = f"clip {clip_id!r}" + (f" in {file}" if file else "")

  def fail(self, field: str, found: object, expected: object):
    raise ClipError(f"{self.where}: {field}: found {found}, expected {expected}")

  def array(
    self,
    field: str,
    x: np.ndarray,
    dtypes: DTypeLike | tuple[DTypeLike, ...],
    shape: tuple[int | None, ...],
  ):
    if not isinstance(x, np.ndarray):
      self.fail(field, type(x).__name__, "a numpy array")
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if x.dtype not in dtypes:
      self.fail(field, f"dtype {x.dtype}", " or ".join(np.dtype(t).name for t in dtypes))
    same = len(x.shape) == len(shape) and all(
      want is None or have == want for have, want in zip(x.shape, shape, strict=True)
    )
    if not same:
      self.fail(field, f"shape {x.shape}", f"shape {shape}")

  def finite(self, field: str, x: np.ndarray):
    if x.dtype == bfloat16:  # by its bits, 8 times as fast: an exponent of ones
      finite = not x.size or (x.view(np.uint16) & 0x7FFF).max() < 0x7F80
    else:
      finite = np.isfinite(x).all()
    if not finite:
      self.fail(field, "a value that is not finite", "finite values")

  def codes(self, field: str, x: np.ndarray, upper: int):
    if x.size and (x.min() < 0 or x.max() >= upper):
      self.fail(field, f"values {x.min()}..{x.max()}", f"values 0..{upper - 1}")


def _check_common(clip: Clip | EncodedClip, check: _Checker, frames: int):
  for field in ("clip_id", "character_id", "style", "source", "consent"):
    if not isinstance(getattr(clip, field), str) or not getattr(clip, field):
      check.fail(field, repr(getattr(clip, field)), "a non-empty string")
  if not isinstance(clip.text, str):
    check.fail("text", type(clip.text).__name__, "a string")
  if not clip.fps > 0:
    check.fail("fps", clip.fps, "a positive number")
  if frames < 1 or (frames - 1) % 4:
    check.fail("video", f"{frames} frames", "1 + 4k frames")
  samples = audio_samples(frames, clip.fps)
  for field in ("speak_audio", "listen_audio"):
    audio = getattr(clip, field)
    check.array(field, audio, np.float32, (samples,))
    check.finite(field, audio)
    if audio.size and np.abs(audio).max() > 1.0:
      check.fail(field, f"peak {np.abs(audio).max():.3f}", "samples in [-1, 1]")
  check.array("state", clip.state, np.int8, (frames,))
  check.codes("state", clip.state, len(STATES))


def _check_references(clip: Clip | EncodedClip, check: _Checker):
  count = clip.references.shape[0]
  check.array("reference_kind", clip.reference_kind, np.int32, (count,))
  check.array("reference_label", clip.reference_label, np.int32, (count,))
  check.codes("reference_kind", clip.reference_kind, len(REFERENCE_KINDS))
  for kind, labels in enumerate(LABELS_OF_KIND):
    check.codes("reference_label", clip.reference_label[clip.reference_kind == kind], labels)


def _check_made(clip: EncodedClip, field: str, check: _Checker, leading: int):
  """Latents that a model made, [..., F, h, w, C] with `leading` axes up to F."""
  x = getattr(clip, field)
  check.array(field, x, (np.float16, bfloat16), (*(None,) * leading, *clip.latents.shape[1:]))
  frames = x.shape[leading - 1]
  if not 1 <= frames <= len(clip.latents):
    check.fail(field, f"{frames} frames", f"1 to {len(clip.latents)}, as the latents have")
  check.finite(field, x)


def _check_features(clip: EncodedClip, field: str, check: _Checker):
  """Hidden states at 50 a second for the whole seconds that the audio fills, or begins to."""
  features = getattr(clip, field)
  check.array(field, features, bfloat16, (None, None, None))
  seconds = -(-len(clip.speak_audio) // SAMPLE_RATE)
  if len(features) != seconds * FEATURES_PER_SECOND:
    check.fail(
      field,
      f"{len(features)} features for {seconds} s, {len(features) / max(seconds, 1):g} a second",
      f"{seconds * FEATURES_PER_SECOND}, {FEATURES_PER_SECOND} a second",
    )
  check.finite(field, features)
