"""The goals a puppet model is measured against, decided from the results of `run.evaluate`."""

import dataclasses
from collections.abc import Callable

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
