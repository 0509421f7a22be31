"""The goals a puppet model is measured against, decided from the results of `run.evaluate`.

And what streams keep of Base, measure by measure.
"""

import dataclasses
from collections.abc import Callable

BASE = "model"
ANCHORS = ("render", "vae", "still")  # systems that are no models
NEAR_CHANCE = 0.10  # "near chance": within ten points of it
STYLE_SHARE = 0.85  # the held-out style within 15 % of the trained ones


@dataclasses.dataclass(frozen=True)
class Goal:
  """One goal: `read` takes the scores of a system and gives a value or None, `met` judges it."""

  name: str
  text: str
  read: Callable[[dict], float | None]
  met: Callable[[float], bool]
  system: str = "model"
  percent: bool = False


def _heldout(key: str) -> Callable[[dict], float | None]:
  return lambda scores: scores.get("heldout", {}).get(key)


def _style_share(key: str) -> Callable[[dict], float | None]:
  def read(scores: dict) -> float | None:
    trained = scores.get("heldout", {}).get(key)
    other = scores.get("heldout_style", {}).get(key)
    return other / trained if trained and other is not None else None

  return read


def _identity(suite: str, key: str = "accuracy") -> Callable[[dict], float | None]:
  return lambda scores: scores.get(suite, {}).get("all", {}).get(key)


def _above_chance(scores: dict) -> float | None:
  value, chance = (_identity("identity_without", key)(scores) for key in ("accuracy", "chance"))
  return None if value is None or chance is None else value - chance


GOALS = (
  Goal("lip correlation", "≥ 0.80", _heldout("lip_correlation"), lambda x: x >= 0.80),
  Goal("lip lag, frames", "|lag| ≤ 1", _heldout("lip_lag_frames"), lambda x: abs(x) <= 1),
  Goal(
    "mouth motion while listening, of speaking",
    "≤ 10 %",
    _heldout("mouth_motion_listening"),
    lambda x: x <= 0.10,
    percent=True,
  ),
  Goal(
    "mouth motion while idle, of speaking",
    "≤ 10 %",
    _heldout("mouth_motion_idle"),
    lambda x: x <= 0.10,
    percent=True,
  ),
  Goal("nods after phrase ends, F1", "≥ 0.60", _heldout("nod_f1"), lambda x: x >= 0.6),
  Goal(
    "idle actions recognised",
    "≥ 80 %",
    _heldout("actions_recognised"),
    lambda x: x >= 0.8,
    percent=True,
  ),
  Goal(
    "hidden attributes with references that show them",
    "≥ 90 %",
    _identity("identity_with"),
    lambda x: x >= 0.9,
    percent=True,
  ),
  Goal(
    "hidden attributes without them, above chance",
    "≤ 10 points",
    _above_chance,
    lambda x: x <= NEAR_CHANCE,
    percent=True,
  ),
  Goal(
    "held-out style, lip correlation of the trained styles'",
    "≥ 85 %",
    _style_share("lip_correlation"),
    lambda x: x >= STYLE_SHARE,
    percent=True,
  ),
  Goal(
    "held-out style, idle actions of the trained styles'",
    "≥ 85 %",
    _style_share("actions_recognised"),
    lambda x: x >= STYLE_SHARE,
    percent=True,
  ),
  Goal(
    "lip correlation of the render through the VAE",
    "≥ 0.97",
    _heldout("lip_correlation"),
    lambda x: x >= 0.97,
    system="vae",
  ),
)


def judge(systems: dict[str, dict]) -> list[dict]:
  """Every goal with the measured value, the render's own, and whether it is met (None: undecided).

  Args:
    systems: {system: scores} of `run.evaluate`, NaN already None.
  """
  rows = []
  for goal in GOALS:
    value = goal.read(systems.get(goal.system, {}))
    rows.append(
      {
        "name": goal.name,
        "text": goal.text,
        "value": value,
        "anchor": goal.read(systems.get("render", {})),
        "percent": goal.percent,
        "passed": None if value is None else bool(goal.met(value)),
      }
    )
  return rows


@dataclasses.dataclass(frozen=True)
class Kept:
  """A measure of which a stream keeps a share of Base's; `lower` says that less is better."""

  name: str
  read: Callable[[dict], float | None]
  lower: bool = False
  form: str = ".2f"


# Not among them: the lag, which is best at 0, and PSNR, for a ratio of decibels means nothing.
KEPT = (
  Kept("lip correlation", _heldout("lip_correlation")),
  Kept("mouth motion listening / speaking", _heldout("mouth_motion_listening"), True, ".1%"),
  Kept("mouth motion idle / speaking", _heldout("mouth_motion_idle"), True, ".1%"),
  Kept("head motion listening", _heldout("liveliness_listening"), form=".0%"),
  Kept("head motion idle", _heldout("liveliness_idle"), form=".0%"),
  Kept("nod F1", _heldout("nod_f1")),
  Kept("brows rise on a question", _heldout("brows_on_question"), form=".0%"),
  Kept("smile on laughter", _heldout("smile_on_laughter"), form=".0%"),
  Kept("gaze away on hesitations", _heldout("gaze_shift"), form=".0%"),
  Kept("idle actions recognised", _heldout("actions_recognised"), form=".0%"),
  Kept("emotion followed, correlation", _heldout("emotion_correlation")),
  Kept("SSIM to the render", _heldout("ssim"), form=".3f"),
  Kept("pose error", _heldout("pose_error"), True, ".3f"),
  Kept("flicker", _heldout("flicker"), True),
  Kept("colour drift", _heldout("colour_drift"), True),
  Kept("frozen frames", _heldout("freeze_ratio"), True, ".1%"),
  Kept("seam index", _heldout("seam_index"), True),
  Kept("seam index over latents' borders", _heldout("seam_over_latents"), True),
  Kept("hidden attributes with references", _identity("identity_with"), form=".0%"),
  Kept(
    "held-out style, lip correlation",
    lambda scores: scores.get("heldout_style", {}).get("lip_correlation"),
  ),
  Kept(
    "held-out style, idle actions",
    lambda scores: scores.get("heldout_style", {}).get("actions_recognised"),
    form=".0%",
  ),
)


def kept_share(online: float | None, base: float | None, lower: bool = False) -> float | None:
  """How much of Base's value a stream keeps: 1 is all of it, more is better than Base.

  online / base, the other way round where lower is better. None where either is missing, or where
  what is divided by is not positive; never under 0, for a wrong sign keeps nothing.
  """
  if online is None or base is None:
    return None
  above, below = (base, online) if lower else (online, base)
  return max(0.0, above / below) if below > 0 else None


def retention(systems: dict[str, dict]) -> list[dict]:
  """What every stream keeps of Base, by measure; empty unless Base and a stream are among them.

  Args:
    systems: {system: scores} of `run.evaluate`, NaN already None.

  Returns:
    Rows {"name", "form" of a value, "base", "online": {system: value}, "kept": {system: share},
    "lines": {system: "SYSTEM keeps 84 % of Base"}}; what is undefined is None, in a line "n/a".
  """
  streams = [name for name in systems if name not in (*ANCHORS, BASE)]
  if BASE not in systems or not streams:
    return []
  rows = []
  for measure in KEPT:
    base, online = measure.read(systems[BASE]), {n: measure.read(systems[n]) for n in streams}
    kept = {n: kept_share(value, base, measure.lower) for n, value in online.items()}
    lines = {n: f"{n} keeps {_percent(share)} of Base" for n, share in kept.items()}
    found = {"base": base, "online": online, "kept": kept, "lines": lines}
    rows.append({"name": measure.name, "form": measure.form, **found})
  return rows


def _percent(share: float | None) -> str:
  return "n/a" if share is None else f"{100 * share:.0f} %"
