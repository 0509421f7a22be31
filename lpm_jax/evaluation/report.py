"""One HTML page that shows what was measured: goals, clips side by side, tables, tracks."""

import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines.puppets.behaviour import ACTIONS
from lpm_jax import media
from lpm_jax.evaluation import actions, goals, page, plots
from lpm_jax.evaluation.scoring import Take, mouth_track

SYSTEM_NAMES = {"render": "render", "vae": "through the VAE", "model": "model", "still": "still"}
# (key, label, format): the rows of every table of performance measures.
MEASURES = (
  ("lip_correlation", "lip correlation", ".3f"),
  ("lip_lag_frames", "lip lag, frames", "+.0f"),
  ("mouth_motion_listening", "mouth motion listening / speaking", ".1%"),
  ("mouth_motion_idle", "mouth motion idle / speaking", ".1%"),
  ("liveliness_listening", "head motion listening, of the scene's", ".0%"),
  ("liveliness_idle", "head motion idle, of the scene's", ".0%"),
  ("nod_precision", "nod precision", ".2f"),
  ("nod_recall", "nod recall", ".2f"),
  ("nod_f1", "nod F1", ".2f"),
  ("brows_on_question", "brows rise on a question", ".0%"),
  ("smile_on_laughter", "smile on laughter", ".0%"),
  ("gaze_shift", "gaze away on hesitations", ".0%"),
  ("actions_recognised", "idle actions recognised", ".0%"),
  ("emotion_correlation", "emotion followed, correlation", ".2f"),
  ("emotion_steepness", "steepest emotion step / scene's", ".2f"),
  ("psnr", "PSNR to the render, dB", ".1f"),
  ("ssim", "SSIM to the render", ".3f"),
  ("flicker", "flicker, luma levels", ".2f"),
  ("colour_drift", "colour drift, ΔE", ".2f"),
  ("freeze_ratio", "frozen frames", ".1%"),
  ("seam_index", "change at chunk borders / elsewhere", ".2f"),
  ("seam_over_latents", "change at chunk borders / other latents' borders", ".2f"),
)
COSTS = (
  ("evaluations_per_second", "evaluations a second of video", ".1f"),
  ("evaluations_per_frame", "evaluations of every frame", ".0f"),
  ("cache_passes_per_second", "passes that fill caches, a second", ".1f"),
)
GROUP_MEASURES = ("lip_correlation", "lip_lag_frames", "nod_f1", "actions_recognised", "ssim")
_FORMATS = {key: form for key, _, form in MEASURES}
_LABELS = {key: label for key, label, _ in MEASURES}


def number(value: float | None, form: str) -> str:
  """A formatted number, or a dash for one that does not exist."""
  return "–" if value is None else format(value, form)


def headline_table(systems: dict[str, dict], suite: str = "heldout") -> dict:
  """Systems side by side over every measure of one suite."""
  names = list(systems)
  rows = [
    [label, *(number(systems[name].get(suite, {}).get(key), form) for name in names)]
    for key, label, form in MEASURES
  ]
  rows += [
    [label, *(number(systems[name].get("cost", {}).get(key), form) for name in names)]
    for key, label, form in COSTS
    if any("cost" in scores for scores in systems.values())
  ]
  return {"head": ["", *names], "rows": rows}


def models_of(names: Iterable[str]) -> list[str]:
  """Those of the systems that are models: Base and the streams; the render where there is none."""
  names = list(names)
  return [name for name in names if name not in goals.ANCHORS] or ["render"]


def group_table(groups: dict[str, dict[str, dict]], first: str) -> dict:
  """Groups of clips (styles, kinds) of {system: {group: scores}}, over what can differ.

  One row a group and system; a single system is not named.
  """
  several = ["system"] if len(groups) > 1 else []
  head = [first, *several, "clips", *(_LABELS[key] for key in GROUP_MEASURES)]
  rows = []
  for name in dict.fromkeys(name for of_system in groups.values() for name in of_system):
    for system, scores in ((s, of_system[name]) for s, of_system in groups.items()):
      values = (number(scores[key], _FORMATS[key]) for key in GROUP_MEASURES)
      rows.append([name, *([system] if several else []), scores["clips"], *values])
  return {"head": head, "rows": rows}


def identity_table(systems: dict[str, dict]) -> dict:
  """Hidden attributes: accuracy with and without the references that show them, and chance."""
  models, render = models_of(systems), systems.get("render", {})
  rows = []
  for name, scores in systems[models[0]].get("identity_with", {}).items():
    row = [name.replace("_", " "), scores["clips"]]
    for model in models:
      for suite in ("identity_with", "identity_without"):
        row.append(number(systems[model][suite][name]["accuracy"], ".0%"))
    anchor = render.get("identity_with", {}).get(name, {})
    rows.append([*row, number(scores["chance"], ".0%"), number(anchor.get("accuracy"), ".0%")])
  head = ["attribute", "clips"]
  for model in models:
    of_model = f"{model}: " if len(models) > 1 else ""
    head += [f"{of_model}with references", f"{of_model}main picture only"]
  return {"head": [*head, "chance", "render itself"], "rows": rows}


def retention_table(rows: Sequence[dict]) -> dict:
  """What streams keep of Base, rows of `goals.retention`: the share, and both values."""
  names = list(rows[0]["online"])
  cells = [
    [row["name"], *(_kept(row, name) for name in names), number(row["base"], row["form"])]
    for row in rows
  ]
  return {"head": ["", *(f"{name} keeps" for name in names), "of Base"], "rows": cells}


def _kept(row: dict, name: str) -> str:
  share, value = row["kept"][name], number(row["online"][name], row["form"])
  return f"{'n/a' if share is None else format(share, '.0%')} ({value})"


def probe_table(own_error: dict[str, dict]) -> dict:
  """The probe's own error on held-out renders, styles as columns."""
  styles = list(own_error)
  rows = [
    [
      f"{field.replace('_', ' ')}: correlation (error)",
      *(
        f"{number(own_error[s]['pose'][field]['correlation'], '.3f')} "
        f"({number(own_error[s]['pose'][field]['mae'], '.3f')})"
        for s in styles
      ),
    ]
    for field in own_error[styles[0]]["pose"]
  ]
  rows += [
    [
      f"{name.replace('_', ' ')}",
      *(number(own_error[s]["attributes"][name], ".1%") for s in styles),
    ]
    for name in own_error[styles[0]]["attributes"]
  ]
  return {"head": ["", *styles], "rows": rows}


def side_by_side(takes: dict[str, Take], scale: int = 3) -> dict:
  """One mp4 with the same clip of every system next to each other, as a data URI with a caption."""
  clip = next(iter(takes.values())).clip
  wide = np.concatenate([take.video for take in takes.values()], axis=2)
  audio = np.stack([clip.speak_audio, clip.listen_audio], axis=1)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "clip.mp4"
    media.write_video(path, wide, clip.fps, audio, scale=scale, crf=18)
    uri = plots.data_uri(path.read_bytes(), "video/mp4")
  caption = f"{clip.clip_id}, {clip.style}: {clip.text}"
  return {"uri": uri, "names": [SYSTEM_NAMES.get(n, n) for n in takes], "caption": caption}


def mouth_figures(chosen: Sequence[dict[str, Take]]) -> list[dict]:
  """Mouth opening over time of chosen clips: truth, VAE, models."""
  figures = []
  for takes in chosen:
    clip = next(iter(takes.values())).clip
    shown = ("vae", *models_of(takes))
    tracks = {name: mouth_track(one) for name, one in takes.items() if name in shown}
    truth = next(iter(takes.values())).measured.field("mouth_open")[1]
    uri = plots.track_plot(tracks, truth, clip.state, "mouth open", clip.fps)
    figures.append({"uri": uri, "caption": f"{clip.clip_id}, {clip.style}"})
  return figures


def sections(results: dict, chosen: Sequence[dict[str, Take]]) -> list[dict]:
  """All tables and figures below the clips, in reading order."""
  systems = results["systems"]
  played = {name: systems[name] for name in models_of(systems)}
  confused = {n: scores["confusion"] for n, scores in played.items() if scores.get("confusion")}
  styles = {
    name: scores.get("by_style", {})
    | ({"held-out style": scores["heldout_style"]} if "heldout_style" in scores else {})
    for name, scores in played.items()
  }
  found = [
    {
      "title": "Systems",
      "note": "Held-out characters, voices and sentences. Every system runs through the same code; "
      "the render is what a perfect model scores under this probe, the still picture what a "
      "motionless one does. A dash means that the measure decides nothing there. Change at chunk "
      "borders: mean difference of the two frames around the end of a chunk, over that of all "
      "other neighbours but the first picture's, or over that at the other borders of latent "
      "frames, where noisy latents step too; taken at the same frames in every system.",
      "table": headline_table(systems),
      "figures": [],
    },
    {
      "title": "Mouth",
      "note": "Opening of the mouth as the probe reads it, against the scene's truth.",
      "table": None,
      "figures": mouth_figures(chosen),
    },
    {
      "title": "Styles",
      "note": "The held-out style was never trained on by the generator.",
      "table": group_table(styles, "style"),
      "figures": [],
    },
    {
      "title": "Kinds of scene",
      "note": "What the character does in the clip.",
      "table": group_table({n: s.get("by_kind", {}) for n, s in played.items()}, "kind"),
      "figures": [],
    },
  ]
  if all("identity_with" in scores for scores in played.values()) and "render" not in played:
    found.append(
      {
        "title": "Hidden attributes",
        "note": "None of them can be seen in the main picture. Every character is played twice, "
        "once with all of them flipped, so chance is one half.",
        "table": identity_table(systems),
        "figures": [],
      }
    )
  if confused:
    caption = "Rows: asked for by the text. Columns: recognised in the video."
    found.append(
      {
        "title": "Idle actions",
        "note": "",
        "table": None,
        "figures": [
          {
            "uri": plots.confusion_plot(table, [*ACTIONS, actions.NONE]),
            "caption": f"{SYSTEM_NAMES.get(name, name)}. {caption}",
          }
          for name, table in confused.items()
        ],
      }
    )
  if results.get("retention"):
    found.insert(
      1,
      {
        "title": "What streams keep of Base",
        "note": "A stream's value over Base's, the other way round where less is better; in "
        "brackets the stream's own. n/a: there is nothing to divide by.",
        "table": retention_table(results["retention"]),
        "figures": [],
      },
    )
  found.append(
    {
      "title": "The instrument",
      "note": "The probe's own error on renders of characters it never saw, random poses; face "
      "fields where |yaw| < 0.7. It was trained on all styles, for an instrument has to read all "
      "of them.",
      "table": probe_table(results["probe"]) if results.get("probe") else None,
      "figures": [],
    }
  )
  return found


def write_report(
  path: str | os.PathLike,
  results: dict,
  chosen: Sequence[dict[str, Take]],
  *,
  title: str,
  subtitle: str,
  command: str,
):
  """Writes the self-contained page, whole or not at all.

  Args:
    path: the .html file.
    results: what `run.evaluate` returns, free of NaN.
    chosen: for each clip to show, {system: take}.
    title: heading.
    subtitle: one line on model, steps and clips.
    command: what prints these numbers again.
  """
  goals = [
    {
      **goal,
      "value": number(goal["value"], ".1%" if goal["percent"] else ".2f"),
      "anchor": number(goal["anchor"], ".1%" if goal["percent"] else ".2f"),
    }
    for goal in results["goals"]
  ]
  page.write_page(
    path,
    "report.html",
    title=title,
    subtitle=subtitle,
    command=command,
    goals=goals,
    goals_note="On held-out characters, voices and sentences.",
    clips=[side_by_side(takes) for takes in chosen],
    sections=sections(results, chosen),
  )
