"""Performance measures over pose tracks: lip sync, mouth at rest, nods, gaze, emotion, attributes.

Pure numpy. A `Measured` pairs what the probe read in a video with what the scene asked for; every
measure runs the same detector on both sides, so a detector's own blind spots cancel. Measures that
a set of clips cannot decide (no nods expected, a still mouth) are NaN, never a flattering number.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.clip import STATES
from data_pipelines.puppets.pose import POSE_FIELDS, POSE_INDEX

IDLE, SPEAKING, LISTENING = range(len(STATES))
MAX_LAG = 6
LIP_FRAMES = 12  # fewer speaking frames than half a second decide nothing
STILL = 1e-4  # standard deviation under which a track counts as constant
REST_MARGIN = 4  # frames, one latent frame: the mouth may settle this long after speech
REST_OPENING = 0.05
NOD_DEPTH = 0.1  # radians, two fifths of a full nod
NOD_SECONDS = 0.5  # a nod falls and rises again within this time on each side
HEAD = [POSE_INDEX[name] for name in ("yaw", "pitch", "roll")]
HEAD_MOVES = 0.02  # radians, standard deviation: under it the scene's own head hardly moves
NOD_WINDOW = (0.1, 0.8)  # seconds after the end of a partner's phrase


@dataclasses.dataclass(frozen=True)
class Measured:
  """One clip: pose read by the probe and true pose float32 [T, 14], state int8 [T], events.

  Args:
    events: (kind, start_s, end_s, detail) tuples, seconds from the first frame.
  """

  read: np.ndarray
  truth: np.ndarray
  state: np.ndarray
  events: tuple[tuple[str, float, float, str], ...] = ()
  fps: float = 24.0

  def field(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read and true track [T] of one pose field."""
    column = POSE_INDEX[name]
    return self.read[:, column], self.truth[:, column]

  def events_of(self, kind: str) -> list[tuple[str, float, float, str]]:
    return [event for event in self.events if event[0] == kind]

  def frames(self, start_s: float, end_s: float) -> slice:
    """The frames of a time span, cut to the clip."""
    last = len(self.truth)
    return slice(*(min(max(round(s * self.fps), 0), last) for s in (start_s, end_s)))


def mean(values: Sequence[float]) -> float:
  """Mean of the numbers that are not NaN; NaN when there are none."""
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else float("nan")


def pearson(read: np.ndarray, truth: np.ndarray) -> float:
  """Correlation of two tracks [N]; NaN where the truth is constant, 0 where only the reading is."""
  if len(truth) < 2 or truth.std() < STILL:
    return float("nan")
  if read.std() < STILL:
    return 0.0
  return float(np.corrcoef(read, truth)[0, 1])


def smooth(track: np.ndarray, frames: int = 3) -> np.ndarray:
  """Centred moving average of a track [T], edges repeated."""
  padded = np.pad(track, frames // 2, mode="edge")
  return np.convolve(padded, np.ones(frames) / frames, mode="valid")


def lip_curve(clip: Measured) -> np.ndarray:
  """Correlation of mouth_open read at t + lag with the truth at speaking frames t, [2 MAX_LAG + 1].

  Lag runs -MAX_LAG..MAX_LAG frames; a positive one means that the video is late. NaN throughout
  when fewer than LIP_FRAMES speak or the true mouth does not move.
  """
  read, truth = clip.field("mouth_open")
  speaking = np.flatnonzero(clip.state == SPEAKING)
  curve = np.full(2 * MAX_LAG + 1, np.nan)
  if len(speaking) < LIP_FRAMES:
    return curve
  for i, lag in enumerate(range(-MAX_LAG, MAX_LAG + 1)):
    t = speaking[(speaking + lag >= 0) & (speaking + lag < len(truth))]
    curve[i] = pearson(read[t + lag], truth[t])
  return curve


def lip_sync(clips: Sequence[Measured]) -> dict[str, float]:
  """Lip correlation at lag 0 and the best lag in frames.

  Each clip gives one correlation over its speaking frames and all clips count alike; the lag is
  where the mean curve peaks, undefined (NaN) where that peak stays under 0.2.
  """
  curves = np.array([lip_curve(clip) for clip in clips]).reshape(-1, 2 * MAX_LAG + 1)
  curves = curves[~np.isnan(curves).any(1)]
  if not len(curves):
    return {"lip_correlation": float("nan"), "lip_lag_frames": float("nan"), "lip_clips": 0}
  curve = curves.mean(0)
  lag = float(curve.argmax() - MAX_LAG) if curve.max() > 0.2 else float("nan")
  return {
    "lip_correlation": float(curve[MAX_LAG]),
    "lip_lag_frames": lag,
    "lip_clips": len(curves),
  }


def at_rest(clip: Measured) -> np.ndarray:
  """Frames bool [T] where the scene keeps the mouth closed, REST_MARGIN frames around included.

  A requested yawn and the last syllable's closing are no fault of a silent mouth.
  """
  moving = clip.truth[:, POSE_INDEX["mouth_open"]] > REST_OPENING
  return np.convolve(moving, np.ones(2 * REST_MARGIN + 1), mode="same") == 0


def mouth_motion(clips: Sequence[Measured]) -> dict[str, float]:
  """How far mouth_open strays from its mean while speaking, and the share of it that rest keeps.

  Root mean square over pooled frames, the mean taken per clip and state (a mean of frame-to-frame
  steps would measure the probe's noise first). The shares divide by the same system's own motion
  while speaking, so a mouth that never moves is NaN, not perfect.
  """
  strayed = {code: [] for code in range(len(STATES))}
  for clip in clips:
    read, _ = clip.field("mouth_open")
    for code, parts in strayed.items():
      inside = (clip.state == code) & ((code == SPEAKING) | at_rest(clip))
      if inside.any():
        parts.append(np.square(read[inside] - read[inside].mean()))
  motion = {
    code: float(np.sqrt(np.concatenate(parts).mean())) if parts else float("nan")
    for code, parts in strayed.items()
  }
  speaking = motion[SPEAKING] if motion[SPEAKING] > STILL else float("nan")
  return {
    "mouth_motion_speaking": motion[SPEAKING],
    "mouth_motion_idle": motion[IDLE] / speaking,
    "mouth_motion_listening": motion[LISTENING] / speaking,
  }


def head_motion(clip: Measured, states: Sequence[int]) -> float:
  """How much of the scene's head motion is there in frames of these states; 1 at most.

  More is not livelier: a head that shakes is no better than the scene's. NaN where fewer than
  LIP_FRAMES frames are in these states, or the scene's own head hardly moves in them.
  """
  inside = np.isin(clip.state, states)
  if inside.sum() < LIP_FRAMES:
    return float("nan")
  read, truth = (
    float(pose[inside][:, HEAD].std(axis=0).mean()) for pose in (clip.read, clip.truth)
  )
  return min(read / truth, 1.0) if truth > HEAD_MOVES else float("nan")


def liveliness(clips: Sequence[Measured]) -> dict[str, float]:
  """`head_motion` while listening and while idle, each the mean over clips."""
  names = {"liveliness_listening": LISTENING, "liveliness_idle": IDLE}
  return {
    name: mean([head_motion(clip, (state,)) for clip in clips]) for name, state in names.items()
  }


def nod_frames(pitch: np.ndarray, fps: float = 24.0) -> list[int]:
  """Frames of nods in a pitch track [T] radians: dips of NOD_DEPTH, NOD_SECONDS a side at most.

  Of dips nearer than a fifth of a second only the deepest counts.
  """
  pitch = smooth(pitch)
  reach, apart = round(NOD_SECONDS * fps), round(0.2 * fps)
  nods: list[int] = []
  for t in range(1, len(pitch) - 1):
    around = pitch[max(t - apart, 0) : t + apart + 1]
    if pitch[t] > around.min() or (nods and t - nods[-1] <= apart):
      continue
    before = pitch[max(t - reach, 0) : t].max() - pitch[t]
    after = pitch[t + 1 : t + 1 + reach].max() - pitch[t]
    if min(before, after) >= NOD_DEPTH:
      nods.append(t)
  return nods


def nod_scores(
  clips: Sequence[Measured], phrase_end: str = "partner_phrase_end"
) -> dict[str, float]:
  """Precision, recall and F1 of nods in NOD_WINDOW seconds after the partner's phrase ends.

  A window is expected to hold a nod when the true pitch has one there. Recall: expected windows in
  which the video nods. Precision: the video's nods in such windows, of those and all others in
  listening frames.
  """
  expected = hit = found = placed = 0
  for clip in clips:
    read = nod_frames(clip.field("pitch")[0], clip.fps)
    truth = nod_frames(clip.field("pitch")[1], clip.fps)
    windows = []
    for _, _, end, _ in clip.events_of(phrase_end):
      low, high = ((end + s) * clip.fps for s in NOD_WINDOW)
      if any(low <= t <= high for t in truth):
        windows.append((low, high))
        hit += any(low <= t <= high for t in read)
    expected += len(windows)
    for t in read:
      inside = any(low <= t <= high for low, high in windows)
      placed += inside
      found += inside or bool(clip.state[t] == LISTENING)
  recall = hit / expected if expected else float("nan")
  precision = placed / found if found else (0.0 if expected else float("nan"))
  total = precision + recall
  f1 = 2 * precision * recall / total if total > 0 else total
  return {
    "nod_precision": precision,
    "nod_recall": recall,
    "nod_f1": f1,
    "nods_expected": expected,
    "nods_found": found,
  }


def _shift_share(clips: Sequence[Measured], kind: str, fields: tuple[str, ...], before, during):
  """Share of events at which the fields move at least half as far as the scene's, in its direction.

  `before` and `during` map an event's (start_s, end_s) to the spans in seconds that are compared.
  Returns (share, number of events whose true shift exceeds 0.2).
  """
  columns = [POSE_INDEX[name] for name in fields]
  shares = []
  for clip in clips:
    for _, start, end, _ in clip.events_of(kind):
      spans = clip.frames(*before(start, end)), clip.frames(*during(start, end))
      if any(span.stop - span.start < 3 for span in spans):
        continue
      read, truth = (
        pose[spans[1], columns].mean(0) - pose[spans[0], columns].mean(0)
        for pose in (clip.read, clip.truth)
      )
      size = np.linalg.norm(truth)
      if size > 0.2:
        shares.append(float(read @ truth) / size**2 >= 0.5)
  return mean(shares), len(shares)


def gaze_shift(clips: Sequence[Measured]) -> dict[str, float]:
  """Share of hesitations ("um") at which the gaze moves away from where it was just before."""
  share, count = _shift_share(
    clips,
    "hesitation",
    ("gaze_x", "gaze_y"),
    before=lambda start, end: (start - 0.35, start - 0.1),
    during=lambda start, end: (start + 0.1, end - 0.05),
  )
  return {"gaze_shift": share, "hesitations": count}


def reactions(clips: Sequence[Measured]) -> dict[str, float]:
  """Shares of the partner's questions answered by brows, and of laughter answered by a smile."""
  brows, questions = _shift_share(
    clips,
    "question",
    ("brow",),
    before=lambda start, end: (end - 0.5, end - 0.2),
    during=lambda start, end: (end + 0.05, end + 0.5),
  )
  smiles, laughs = _shift_share(
    clips,
    "laughter",
    ("smile",),
    before=lambda start, end: (start - 0.1, start + 0.2),
    during=lambda start, end: (start + 0.5, end + 0.3),
  )
  return {
    "brows_on_question": brows,
    "questions": questions,
    "smile_on_laughter": smiles,
    "laughs": laughs,
  }


def emotion_change(clips: Sequence[Measured]) -> dict[str, float]:
  """How the face follows emotion: correlation with the truth, steepest step over the truth's.

  Over smile and brow of clips without idle actions where the true field moves by 0.2 or more, both
  tracks smoothed over five frames. A steepness near 1 is as smooth as the scene, a jump is far
  above, a dead face is 0.
  """
  follow, steep = [], []
  for clip in clips:
    if clip.events_of("action"):
      continue
    for name in ("smile", "brow"):
      read, truth = (smooth(track, 5) for track in clip.field(name))
      if np.ptp(truth) < 0.2:
        continue
      follow.append(pearson(read, truth))
      steep.append(float(np.abs(np.diff(read)).max() / np.abs(np.diff(truth)).max()))
  return {"emotion_correlation": mean(follow), "emotion_steepness": mean(steep)}


def attribute_vote(probability: np.ndarray, visible: np.ndarray) -> int:
  """The probe's verdict 0 or 1 on one attribute: majority over the frames [T] where it can be seen.

  Returns -1 where it is never visible.
  """
  if not visible.any():
    return -1
  return int((probability[visible] > 0.5).mean() >= 0.5)


def accuracy(votes: Sequence[int], truths: Sequence[int]) -> dict[str, float]:
  """Share of right verdicts, and the chance level: the share of the more frequent truth."""
  votes, truths = np.asarray(votes), np.asarray(truths)
  seen = votes >= 0
  if not seen.any():
    return {"accuracy": float("nan"), "chance": float("nan"), "clips": 0}
  share = float(truths[seen].mean())
  return {
    "accuracy": float((votes[seen] == truths[seen]).mean()),
    "chance": max(share, 1 - share),
    "clips": int(seen.sum()),
  }


def field_errors(read: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
  """Mean absolute error and correlation per pose field over pooled frames [N, 14]."""
  return {
    name: {
      "mae": float(np.abs(read[:, i] - truth[:, i]).mean()),
      "correlation": pearson(read[:, i], truth[:, i]),
    }
    for name, i in POSE_INDEX.items()
    if i < len(POSE_FIELDS)
  }
