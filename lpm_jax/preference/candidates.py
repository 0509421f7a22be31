"""Candidates: what Base makes of a clip from several seeds, and how each is measured.

The same conditions and other noise: what differs is what the model leaves to chance.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.clip import Candidates, EncodedClip, Measurements
from data_pipelines.loader import ExampleConfig
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.diffusion.solvers import SOLVERS, sample, timesteps
from lpm_jax.distillation.shards import Example, PerClip, Work, clip_noise, fingerprint, write_made
from lpm_jax.evaluation.probe import Probe, load_probe, read_video
from lpm_jax.models.lpm import LPM
from lpm_jax.models.pixels import to_pixels
from lpm_jax.models.vae import VideoVAE
from lpm_jax.preference import dimensions
from lpm_jax.training.samples import encode_window
from lpm_jax.weights import loading, shipped

SETTINGS_FILE = "candidates.json"


@dataclasses.dataclass(frozen=True)
class CandidateSettings:
  """How candidates are made.

  Attributes:
    count: seeds of a clip.
    steps: evaluations of the model for each.
    solver: a name in `diffusion.solvers.SOLVERS`.
    shift: timestep shift, as in training.
    text_guidance, audio_guidance: strengths; 1 and 1 need a third of the work.
    latents: frames from the clip's beginning; clips that are shorter are left out.
    slots: reference slots; a clip's references fill as many as they can.
    seed: of the noise and of the order of references.
  """

  count: int = 4
  steps: int = 20
  solver: str = "unipc"
  shift: float = 2.5
  text_guidance: float = 1.5
  audio_guidance: float = 1.5
  latents: int = 19
  slots: int = 6
  seed: int = 0

  def __post_init__(self):
    least = dict(count=2, steps=1, latents=2, slots=0)
    for name, low in least.items():
      if getattr(self, name) < low:
        raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {low}")
    if self.solver not in SOLVERS:
      raise ValueError(f"solver: found {self.solver!r}, expected one of {sorted(SOLVERS)}")
    if not self.shift > 0.0:
      raise ValueError(f"shift: found {self.shift}, expected a positive number")
    timesteps(self.steps, self.shift)

  def cut(self, text_length: int) -> ExampleConfig:
    """The clip from its beginning, with all the references that find a slot."""
    every = dict(global_reference=1.0, extra_references=1.0, filled=1.0)
    return ExampleConfig(self.latents, self.slots, text_length, **every)


def candidate_latents(
  model: LPM, batch: dict[str, Array], index: Array, settings: CandidateSettings
) -> Array:
  """Candidates of a batch of `loader.example_from_clip`, fp32 [B, N, F, H, W, C].

  The picture is clean. The noise of candidate n depends on the seed, the clip's index and n alone.

  Args:
    model: Base.
    batch: windows of `settings.latents` from the beginning of their clips.
    index: int32 [B], of each clip in the data.
    settings: seeds, solver, guidance.
  """
  latents = batch["latents"].astype(jnp.float32)
  conditions = encode_window(model, batch)
  picture = jnp.broadcast_to(jnp.arange(latents.shape[1]) < 1, latents.shape[:2])
  velocity = guided_velocity(model, conditions, settings.text_guidance, settings.audio_guidance)

  def one(n: Array) -> Array:
    noise = clip_noise(settings.seed, index, n, latents.shape[1:])
    how = dict(steps=settings.steps, shift=settings.shift, solver=settings.solver)
    return sample(velocity, noise, latents, picture, **how)

  return jnp.moveaxis(jax.lax.map(one, jnp.arange(settings.count)), 0, 1)


class Decoder:
  """Latents of candidates [N, F, h, w, C] -> videos uint8 [N, T, H, W, 3], one after the other."""

  def __init__(self, vae: VideoVAE):
    graphdef, self._state = nnx.split(vae)

    @jax.jit
    def decode(state: nnx.State, latents: Array) -> Array:
      model = nnx.merge(graphdef, state)
      return to_pixels(model.decode(latents[None].astype(jnp.float32)))[0]

    self._decode = decode

  def __call__(self, latents: np.ndarray) -> np.ndarray:
    made = [np.asarray(self._decode(self._state, one)) for one in latents]
    return np.stack(made) if made else np.zeros((0, 1, 8, 8, 3), np.uint8)


class Measurer:
  """Measures candidates of puppet clips: decoded, read by the probe, compared with the truth."""

  def __init__(self, vae: VideoVAE, probe: Probe):
    self._decode, self._probe = Decoder(vae), probe

  def __call__(self, clip: EncodedClip, latents: np.ndarray) -> list[Measurements]:
    """Measurements of each of the candidates [N, F, h, w, C]. ClipError where truth is missing."""
    videos = self._decode(latents)
    scene = dimensions.Scene.of(clip, videos.shape[1])
    return [
      dimensions.measurements(dimensions.Take(video, read_video(self._probe, video), scene))
      for video in videos
    ]


def shown(clip: EncodedClip, example: Example) -> EncodedClip:
  """The clip with those references alone that its example has."""
  used = example["reference_kind"] >= 0
  names = ("references", "reference_kind", "reference_label")
  return dataclasses.replace(clip, **{name: example[name][used] for name in names})


def write_candidates(config: ConfigDict, workdir: str | os.PathLike):
  """`lpm prefer` of the task "candidates": a record of `Candidates` for every clip.

  Writes shards and candidates.json into the workdir; see `shards.write_made` for config and errors.

  Args:
    config: also `candidates` (fields of CandidateSettings), `vae`, a weights folder, and
      `probe_weights`, that of the probe, or "" where nothing is measured.
    workdir: folder that is written.
  """
  settings = shipped.config_from_dict(CandidateSettings, config.candidates.to_dict())
  measure, instruments = _measurer(config)
  rules = config.sharding.rules

  def make(model: LPM, batch: dict[str, Array], index: Array) -> Array:
    return candidate_latents(model, batch, index, settings)

  def maker(model: LPM, mesh: Mesh) -> PerClip:
    return PerClip(model, make, mesh, rules)

  def record(clip: EncodedClip, example: Example, made: np.ndarray) -> Candidates:
    return Candidates.of(shown(clip, example), made, measure(clip, made))

  work = Work(
    settings_file=SETTINGS_FILE,
    about={"candidates": dataclasses.asdict(settings), "instruments": instruments},
    label="candidates",
    latents=settings.latents,
    cut=lambda model: settings.cut(model.text.length),
    seed=settings.seed,
    maker=maker,
    record=record,
  )
  write_made(config, workdir, work)


def _measurer(
  config: ConfigDict,
) -> tuple[Callable[[EncodedClip, np.ndarray], Sequence[Measurements]], dict]:
  """What measures, and hashes of its weights; nothing does where no probe is named."""
  if not config.probe_weights:
    return lambda clip, made: [], {}
  files = {"vae": (config.vae, "vae"), "probe": (config.probe_weights, "probe")}
  hashes = {name: fingerprint(shipped.weights_file(*at)) for name, at in files.items()}
  return _load_measurer(config.vae, config.probe_weights), hashes


@functools.lru_cache(maxsize=1)
def _load_measurer(vae: str, probe: str) -> Measurer:
  return Measurer(loading.load_vae(vae), load_probe(probe))
