"""The page on which people judge pairs: one file with all videos, which saves what was answered."""

import io
import os
import pathlib
import tempfile

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from data_pipelines.clip import Candidates, ClipError, audio_samples
from data_pipelines.records import RecordSource
from lpm_jax import media
from lpm_jax.evaluation import page, plots
from lpm_jax.preference.candidates import Decoder
from lpm_jax.preference.dimensions import DIMENSIONS
from lpm_jax.preference.judge import FORMAT
from lpm_jax.preference.pairs import made_hash
from lpm_jax.training.curriculum import clip_kind
from lpm_jax.weights import loading


def write_judging_page(config: ConfigDict, workdir: str | os.PathLike):
  """`lpm prefer` of the task "page": writes workdir/judge.html, whole or not at all.

  Args:
    config: `data.path`, a folder of candidates; `vae`, a weights folder; `pairs` and `first`, how
      many clips are shown and from which on, two candidates of each; `seed` of that choice;
      `dimensions` that are asked about; `scale` and `crf` of the videos; `title`.
    workdir: folder that is written.

  Raises ValueError for settings that make no sense, ClipError for records that are no candidates.
  """
  unknown = [name for name in config.dimensions if name not in DIMENSIONS]
  if unknown or not config.dimensions:
    found = unknown or "none"
    raise ValueError(f"dimensions: found {found}, expected some of {list(DIMENSIONS)}")
  source = RecordSource(config.data.path)
  last = min(config.first + config.pairs, len(source))
  if not 0 <= config.first < last:
    raise ValueError(
      f"first, pairs: found {config.first}, {config.pairs}, expected some of {len(source)} clips"
    )
  path = pathlib.Path(workdir) / "judge.html"
  media.check_writable(path)
  decode = Decoder(loading.load_vae(config.vae))
  pairs = []
  for i in tqdm(range(config.first, last), desc="page", unit="pair"):
    clip = source[i]
    if not isinstance(clip, Candidates):
      raise ClipError(f"clip {clip.clip_id!r} in {clip.file}: candidates: missing")
    rng = np.random.default_rng((config.seed, i))
    places = sorted(rng.choice(len(clip.candidates), 2, replace=False).tolist())
    pairs.append(
      {
        "clip_id": clip.clip_id,
        "text": clip.text,
        "kind": clip_kind(clip.state),
        "places": places,
        "videos": [
          _video(video, clip, config.scale, config.crf) for video in decode(clip.candidates[places])
        ],
        "references": _strip(decode(clip.references[:, None])[:, 0]),
      }
    )
  data = {
    "format": FORMAT,
    "candidates": made_hash(config.data.path),
    "sheet": f"{config.first}-{last}-{config.seed}",
    "questions": [dict(name=name, text=DIMENSIONS[name].question) for name in config.dimensions],
    "pairs": pairs,
  }
  page.write_page(path, "judge.html", title=config.title, data=data)
  print(f"{path}: {len(pairs)} pairs")


def _strip(pictures: np.ndarray) -> str:
  """Pictures uint8 [R, H, W, 3] beside each other, as a data URI; "" where there are none."""
  if not len(pictures):
    return ""
  buffer = io.BytesIO()
  Image.fromarray(np.concatenate(list(pictures), axis=1)).save(buffer, "png")
  return plots.data_uri(buffer.getvalue(), "image/png")


def _video(frames: np.ndarray, clip: Candidates, scale: int, crf: int) -> str:
  """An mp4 with the sound of the scene, as a data URI: character left, partner right."""
  sound = np.stack([clip.speak_audio, clip.listen_audio], axis=1)
  sound = sound[: audio_samples(len(frames), clip.fps)]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "video.mp4"
    media.write_video(path, frames, clip.fps, sound, scale=scale, crf=crf)
    return plots.data_uri(path.read_bytes(), "video/mp4")
