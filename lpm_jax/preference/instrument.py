"""How much measurements of one performance differ: the instrument's own error, for the margins.

A render and the same render through the autoencoder show one performance in other pixels, as the
probe reads a model's videos. Where their measurements differ, nobody performed better.
"""

import json
import os
import pathlib

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from lpm_jax.evaluation import page, scoring
from lpm_jax.evaluation.probe import load_probe, read_video
from lpm_jax.evaluation.run import vae_system
from lpm_jax.evaluation.suite import scene_clips
from lpm_jax.preference.dimensions import DIMENSIONS, Scene, Take, measurements
from lpm_jax.weights import loading


def own_error(differences: list[dict[str, float]]) -> dict[str, dict[str, float]]:
  """Of the differences in each dimension: mean, standard deviation, largest size, and their number.

  The mean is a bias, which all candidates share. Dimensions that no clip decides are NaN.
  """
  found = {}
  for name in DIMENSIONS:
    apart = np.array([each[name] for each in differences if name in each], np.float64)
    found[name] = {
      "bias": float(apart.mean()) if apart.size else float("nan"),
      "spread": float(apart.std()) if apart.size else float("nan"),
      "largest": float(np.abs(apart).max()) if apart.size else float("nan"),
      "clips": int(apart.size),
    }
  return found


def measure_instrument(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """`lpm prefer` of the task "instrument": prints each dimension's error, writes instrument.json.

  Args:
    config: `vae` and `probe_weights`, weights folders; `clips_per_kind` and `frames`, held-out
      scenes.
    workdir: folder that is written.
  """
  probe, through = load_probe(config.probe_weights), vae_system(loading.load_vae(config.vae))
  clips = scene_clips("heldout", config.clips_per_kind, config.frames)
  differences = []
  for clip in tqdm(clips, desc="instrument", unit="clip"):
    render, coded = (
      measurements(Take(video, read_video(probe, video), Scene.of(clip, len(video))))
      for video in (clip.video, *through([clip]))
    )
    both = [name for name in DIMENSIONS if None not in (render[name], coded[name])]
    differences.append({name: coded[name] - render[name] for name in both})
  found = own_error(differences)
  text = json.dumps(scoring.json_safe(found), indent=1)
  page.write_whole(pathlib.Path(workdir) / "instrument.json", text + "\n")
  for name, error in found.items():
    numbers = "  ".join(f"{key} {error[key]:7.4f}" for key in ("bias", "spread", "largest"))
    print(f"{name:<12} {numbers}  of {error['clips']} clips")
  return found
