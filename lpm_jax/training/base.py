"""Training of the Base model: flow matching on windows of encoded clips, stage by stage."""

import dataclasses
import functools
from collections.abc import Callable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from data_pipelines.clip import ClipError, EncodedClip
from data_pipelines.features import FrozenEncoders, load_encoders
from data_pipelines.index import Index
from data_pipelines.loader import (
  ExampleConfig,
  endless,
  example_from_clip,
  example_from_twins,
  mixture,
  stack,
)
from data_pipelines.records import RecordSource
from data_pipelines.silence import silent_clip
from lpm_jax.diffusion import flow
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.training import samples
from lpm_jax.training.audio import load_encoders as load_audio
from lpm_jax.training.curriculum import KINDS, Stage, clip_kind, read_stages
from lpm_jax.weights.shipped import config_from_dict

CONDITIONS = ("text", "speak", "listen")
VALIDATION_SEED = 20
OWN_UP_TO = 0.8  # timestep; above, an evaluation says little of what a window was given
TWINS_FROM = 0.4  # timestep; below, x_t itself tells twins apart


class BaseTask:
  """The Base model on encoded clips.

  Args:
    config: training config with `model` (fields of LPMConfig), `data` (path, validation,
      latent_frames, slots; twins, a folder, for stages of twins), `loss` (shift, motion, twins,
      own_given, drop_text, drop_speak, drop_listen), `stages`, `audio`, a folder of pretrained
      audio encoders or "", and optionally `frozen`, the frozen encoders that run while training
      (`features.load_encoders`) where clips do not store features.
  """

  def __init__(self, config: ConfigDict):
    self.config = config
    self.model_config = config_from_dict(LPMConfig, config.model.to_dict())
    self.curriculum = read_stages(config.stages)

  def build(self, rngs: nnx.Rngs) -> LPM:
    """The model of `config.model`."""
    return LPM(self.model_config, rngs=rngs)

  def initialiser(self) -> Callable[[LPM], None] | None:
    """Takes the audio encoders from the weights folder `config.audio`; None when it is ""."""
    folder = self.config.audio
    return functools.partial(load_audio, folder) if folder else None

  def config_dict(self) -> dict:
    """LPMConfig as plain values."""
    return dataclasses.asdict(self.model_config)

  def learning_rates(self) -> list[tuple[int, tuple]]:
    """Learning-rate factors by stage."""
    return [(stage.steps, tuple(stage.learning_rates)) for stage in self.curriculum]

  def stages(self, seed: int) -> list[tuple[int, grain.MapDataset]]:
    """Each stage's endless mixture of clip kinds."""
    source = RecordSource(self.config.data.path)
    by_kind = indices_by_kind(source.index(), self.config.data.path)
    return [
      (stage.steps, self._stage_dataset(source, by_kind, stage, seed)) for stage in self.curriculum
    ]

  def dataset(self, seed: int, stage: int = -1) -> grain.MapDataset:
    """Every clip once, in order, cut as in one stage."""
    return self._examples(RecordSource(self.config.data.path), self.curriculum[stage], seed)

  def _stage_dataset(
    self, source: RecordSource, by_kind: dict[str, np.ndarray], stage: Stage, seed: int
  ) -> grain.MapDataset:
    cut = self._example_config(stage)
    if stage.twins:
      twins = RecordSource(self.config.data.twins)
      return endless(grain.MapDataset.range(len(twins) // 2), seed).random_map(
        lambda pair, rng: example_from_twins(twins[2 * pair], twins[2 * pair + 1], rng, cut),
        seed=seed,
      )
    parts = [grain.MapDataset.source(by_kind[kind]) for kind in KINDS]
    weights = [stage.mixture.get(kind, 0.0) for kind in KINDS]
    return mixture(parts, weights, seed).random_map(
      lambda index, rng: self._example(source[int(index)], rng, cut), seed=seed
    )

  def _examples(self, source: RecordSource, stage: Stage, seed: int) -> grain.MapDataset:
    cut = self._example_config(stage)
    return grain.MapDataset.source(source).random_map(
      lambda clip, rng: self._example(clip, rng, cut), seed=seed
    )

  def _example(
    self, clip: EncodedClip, rng: np.random.Generator, cut: ExampleConfig
  ) -> dict[str, np.ndarray]:
    """An example with every input of the model."""
    clip = self.with_features(clip)
    return complete(self.window(clip, rng, cut), clip, self.model_config)

  def with_features(self, clip: EncodedClip) -> EncodedClip:
    """The clip with features of frozen encoders, which are made here where it stores none."""
    return self._frozen.added(clip) if self._frozen else clip

  def window(
    self, clip: EncodedClip, rng: np.random.Generator, cut: ExampleConfig
  ) -> dict[str, np.ndarray]:
    """What of a clip an example has."""
    return example_from_clip(clip, rng, cut)

  @functools.cached_property
  def _frozen(self) -> FrozenEncoders | None:
    frozen = self.config.get("frozen")
    return load_encoders(frozen) if frozen else None

  def _example_config(self, stage: Stage) -> ExampleConfig:
    return ExampleConfig(
      frames=stage.latent_frames or self.config.data.latent_frames,
      slots=self.config.data.slots if stage.slots is None else stage.slots,
      text_length=self.model_config.text.length,
      global_reference=stage.global_reference,
      extra_references=stage.extra_references,
      filled=stage.filled,
      extension=stage.extension,
      random_start=stage.random_start,
    )

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of `size` clips, cut as in the stage with the longest windows.

    Needs no data, but `data.height` and `data.width`, the pixels of the pictures.
    """
    data, model = self.config.data, self.model_config
    for name in ("height", "width"):
      if not data.get(name):
        raise ValueError(f"data.{name}: found {data.get(name)}, expected pixels of the pictures")
    stage = max(self.curriculum, key=lambda s: s.latent_frames or data.latent_frames)
    cut = self._example_config(stage)
    text, audio = model.frozen_text, model.frozen_audio
    clip = silent_clip(
      (cut.frames, data.height // 8, data.width // 8, model.transformer.channels),
      cut.slots,
      fps=model.audio.fps,
      text_features=(model.text.length, text.width) if text else None,
      audio_features=(audio.layers + 1, audio.width) if audio else None,
    )
    example = example_from_clip(clip, np.random.default_rng(0), cut)
    return {
      name: jax.ShapeDtypeStruct((size, *np.shape(value)), np.asarray(value).dtype)
      for name, value in example.items()
    }

  def draw(self, batch: dict, key: Array) -> dict[str, Array]:
    """What the loss draws for each clip of a batch: timestep, noise, and conditions to drop.

    The timestep is uniform in [0, 1], then shifted, one per clip; text and each track are dropped
    independently. With probability `loss.own_given` a window that starts within a clip is given
    what the model makes of its first latents at `own_t`.
    """
    settings = self.config.loss
    keys = dict(zip(("t", "noise", *CONDITIONS), jax.random.split(key, 5), strict=True))
    latents = batch["latents"]
    drops = {
      f"drop_{name}": jax.random.bernoulli(keys[name], settings[f"drop_{name}"], latents.shape[:1])
      for name in CONDITIONS
    }
    t = flow.sample_timesteps(keys["t"], len(latents), settings.shift)
    drawn = {"t": t, "noise": jax.random.normal(keys["noise"], latents.shape), **drops}
    if settings.own_given:
      chosen, level, noise = jax.random.split(jax.random.fold_in(key, len(keys)), 3)
      chosen = jax.random.bernoulli(chosen, settings.own_given, t.shape) & (batch["known"] > 1)
      level = jax.random.uniform(level, t.shape, maxval=OWN_UP_TO)
      drawn["own_t"] = jnp.where(chosen, level, 0.0)
      drawn["own_noise"] = jax.random.normal(noise, latents.shape)
    return drawn

  def loss(self, model: LPM, batch: dict, key: Array, step: Array):
    """Flow-matching loss over the latent frames that are not given clean.

    `loss.motion` is the share of the loss that counts where the batch moves. What `draw` makes is
    taken from the batch where it is there. Twins share it and their noisy latents, and `loss.twins`
    of `flow.twin_loss` is added for them.
    """
    del step
    if "noise" not in batch:
      batch = {**batch, **self.draw(batch, key)}
    twins = "twin_latents" in batch
    if twins:
      batch = _joined_twins({**batch, "t": TWINS_FROM + (1.0 - TWINS_FROM) * batch["t"]})
    latents = batch["latents"].astype(jnp.float32)  # may be stored, and sent here, in bfloat16
    unknown = jnp.arange(latents.shape[1]) >= batch["known"][:, None]
    t, noise = jnp.where(unknown, batch["t"][:, None], 0.0), batch["noise"]
    if twins:
      noise = flow.twin_noise(latents, noise, t)
    conditions = samples.encode_window(model, batch)
    seen = self._as_made(model, latents, conditions, batch) if "own_t" in batch else latents
    velocity = model(flow.add_noise(seen, noise, t), t, conditions, batch["time"])
    settings, weight = self.config.loss, unknown.astype(jnp.float32)
    place = 1.0 - settings.motion + settings.motion * flow.motion_map(latents)
    loss = flow.flow_loss(velocity, noise - latents, weight, place)
    if not twins:
      return loss, {}
    apart = flow.twin_loss(velocity, noise - latents, weight)
    return loss + settings.twins * apart, {"flow_loss": loss, "twin_loss": apart}

  @staticmethod
  def _as_made(model: LPM, latents: Array, conditions: Conditions, batch: dict) -> Array:
    """Latents whose given ones are the model's own, made in one evaluation at `own_t`.

    A window of a long video is given what an earlier one has made. A model that has seen nothing
    but clips there reads its own errors as part of the scene, and every window adds to them.
    """
    t = jnp.broadcast_to(batch["own_t"][:, None], latents.shape[:2])
    given = jnp.arange(latents.shape[1]) < batch["known"][:, None]

    def made() -> Array:
      noisy = flow.add_noise(latents, batch["own_noise"], t)
      clean = flow.velocity_to_clean(noisy, model(noisy, t, conditions, batch["time"]), t)
      return jax.lax.stop_gradient(jnp.where(given[..., None, None, None], clean, latents))

    return jax.lax.cond((t > 0).any(), made, lambda: latents)

  def exported(self, model: nnx.Module) -> LPM:
    """The part of the model that makes videos and is exported."""
    return model

  def sample(self, model: nnx.Module, workdir: str, step: int) -> dict[str, float]:
    """Loss and metrics of validation clips, and videos of the first ones.

    The noise is the same every time. See `samples.write_samples`; `config.evaluation.sample_clips`
    is the number of videos.
    """
    if not self.config.data.validation:
      return {}
    whole = dict(latent_frames=None, slots=None, extension=0.0, random_start=0.0)
    stage = dataclasses.replace(self.curriculum[-1], **whole)
    examples = self._examples(RecordSource(self.config.data.validation), stage, VALIDATION_SEED)
    graphdef, state = nnx.split(model)
    size = min(self.config.batch_size, len(examples))
    found = []
    for first in range(0, len(examples) - size + 1, size):
      batch = stack([examples[i] for i in range(first, first + size)])
      key = jax.random.key(VALIDATION_SEED + first)
      found.append(self._validation(graphdef, state, batch, key))
    clips = self.config.evaluation.sample_clips
    if clips:
      batch = stack([examples[i] for i in range(min(clips, len(examples)))])
      samples.write_samples(self.exported(model), batch, workdir, step, self.config.evaluation)
    found = jax.device_get(found)
    return {f"validation_{name}": float(np.mean([row[name] for row in found])) for name in found[0]}

  @functools.cached_property
  def _validation(self) -> Callable[..., dict[str, Array]]:
    def of(graphdef: nnx.GraphDef, state: nnx.State, batch: dict, key: Array) -> dict:
      step = jnp.zeros((), jnp.int32)
      loss, metrics = self.loss(nnx.merge(graphdef, state), batch, key, step)
      return {"loss": loss, **metrics}

    return jax.jit(of, static_argnums=0)


def complete(
  example: dict[str, np.ndarray], clip: EncodedClip, config: LPMConfig
) -> dict[str, np.ndarray]:
  """The example of a clip; ClipError when an input of the model is missing."""
  missing = [name for name in config.inputs().values() if name not in example]
  if missing:
    raise ClipError(
      f"clip {clip.clip_id!r} in {clip.file}: {missing[0]}: missing: encode it with frozen "
      "encoders, or name them in config.frozen"
    )
  return example


def _joined_twins(batch: dict[str, Array]) -> dict[str, Array]:
  """Clips, then their twins, as one batch of twice the size."""
  own = {name: x for name, x in batch.items() if not name.startswith("twin_")}
  return {name: jnp.concatenate([x, batch.get(f"twin_{name}", x)]) for name, x in own.items()}


def indices_by_kind(index: Index, where: str) -> dict[str, np.ndarray]:
  """Indices int64 of the clips of each kind.

  Raises ClipError for clips whose latents are not of one dtype: the processes of a run would then
  draw batches that differ in theirs.
  """
  if len(index.dtypes) > 1:
    raise ClipError(f"{where}: latents: found {' and '.join(index.dtypes)}, expected one dtype")
  kinds = np.array([clip_kind(np.flatnonzero(frames)) for frames in index.states])
  return {kind: np.flatnonzero(kinds == kind) for kind in KINDS}
