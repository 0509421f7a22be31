"""How the refiner begins: what the frozen backbone makes is led back to where it came from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from lpm_jax.diffusion import flow
from lpm_jax.distillation import heard
from lpm_jax.distillation.networks import Distilled, forced_velocity
from lpm_jax.distillation.online_task import fill_student
from lpm_jax.distillation.regression import RegressionTask, seen_history
from lpm_jax.models.lpm import LPM
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.weights import loading


class RefinerStartTask(RegressionTask):
  """Regression of the refiner on trajectories' ends or clips, from the backbone's own errors.

  The frozen backbone (folder `config.backbone`) makes each chunk as in a stream; noised to T2, this
  is regressed on where it came from. For `config.objective` "ode" a chunk begins at T0 or a later
  point of a trajectory, as it is drawn; for "flow" behind T0, where it is the clip itself, noised:
  a clip rests where trajectories, which a model has made, do not quite. All latents of a chunk have
  `loss.shared` of that noise (of its variance) in common, so that what the backbone does wrong is
  wrong in the whole chunk, as in a stream.

  A refiner that were shown the true state at T2 would learn that its input is always right: it
  would keep whatever the backbone makes of a chunk, however far from the chunk before. Nor is its
  history always right: it is the student's own, `loss.rounds` times refined with what the round
  before has made as history (as many rounds as chunks are the stream itself). And `loss.steps`
  weighs how far steps from latent to latent are from the true ones: where the chunk before has an
  error, the next one shall leave it step by step. With `loss.visible` every channel counts as much
  as it is seen (`VideoVAE.channel_gains` of the autoencoder `evaluation.vae`).
  """

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    self.first = int(config.objective == "flow")  # of the evaluations that a chunk can begin with
    if len(self.settings.backbone) <= self.first:
      raise ValueError(f"stream.backbone: found {self.settings.backbone}, expected a T1 for clips")
    self.gains = np.ones(self.model_config.transformer.channels, np.float32)
    if config.loss.visible:
      vae = loading.load_vae(config.evaluation.vae)
      self.gains = np.asarray(nnx.jit(lambda vae: vae.channel_gains())(vae))

  def build(self, rngs: nnx.Rngs) -> Distilled:
    """Student and backbone."""
    frozen = self.config.get("frozen_dtype")
    return Distilled(self.model_config, scores=False, backbone=True, frozen_dtype=frozen, rngs=rngs)

  def initialiser(self) -> Callable[[Distilled], object]:
    """Weights of the folders `config.student` and `config.backbone`."""

    def fill(model: Distilled):
      fill_student(self.config.student, model.student)
      loading.initialiser(self.config.backbone, "backbone")(model.backbone)

    return fill

  def exported(self, model: Distilled) -> LPM:
    """The student."""
    return model.student

  def streaming(self, model: Distilled) -> tuple[LPM, VideoTransformer]:
    """The frozen backbone, and the student."""
    return model.backbone, model.student.transformer

  def draw(self, batch: dict, key: Array) -> dict[str, Array]:
    """The evaluation that each chunk begins with, noise of the later ones and of histories."""
    shape, count = batch["latents"].shape, len(self.settings.backbone)
    of_level, of_noise, of_history, of_chunks = jax.random.split(key, 4)
    noise = jax.random.normal(of_noise, (shape[0], count, *shape[1:]))
    if self.config.objective == "flow":
      shared = self.config.loss.shared
      common = jax.random.normal(of_chunks, (shape[0], count - 1, self.chunks, *shape[2:]))
      common = jnp.repeat(common, self.frames, axis=2)
      mixed = shared**0.5 * common + (1.0 - shared) ** 0.5 * noise[:, :-1, 1:]
      noise = noise.at[:, :-1, 1:].set(mixed)
    return {
      "level": jax.random.randint(of_level, (shape[0], self.chunks), self.first, count),
      "noise": noise,
      "history_noise": jax.random.normal(of_history, shape),
    }

  def loss(self, model: Distilled, batch: dict, key: Array, step: Array):
    """Mean squared error of clean latents over the chunks."""
    del step
    if "noise" not in batch:
      batch = {**batch, **self.draw(batch, key)}
    settings, ode = self.settings, self.config.objective == "ode"
    clean = (batch["trajectory"][:, -1] if ode else batch["latents"]).astype(jnp.float32)
    begins = jnp.repeat(batch["level"], self.frames, axis=1)
    begins = jnp.pad(begins, ((0, 0), (1, 0)))[..., None, None, None]
    # As in `RefinerTask`, both networks hear through the backbone's encoders.
    streamed = heard.streamed_conditions(model.backbone, batch, self.chunks, self.frames)
    conditions = jax.lax.stop_gradient(heard.whole(*streamed, self.frames))

    def evaluate(network: VideoTransformer, history: tuple, noisy: Array, level: float) -> Array:
      t = jnp.full(clean.shape[:2], level).at[:, 0].set(0.0)
      velocity = forced_velocity(network, settings.causal, *history, noisy, t, conditions)
      return flow.velocity_to_clean(noisy, velocity, t)

    def renoised(x: Array, index: int, level: float, scale: float = settings.temperature) -> Array:
      noise = scale * batch["noise"][:, index]
      return flow.add_noise(x, noise, jnp.full(clean.shape[:2], level))

    history, coarse = seen_history(settings, clean, batch["history_noise"]), clean
    for i, level in enumerate(settings.backbone[self.first :], self.first):
      if ode:
        state = batch["trajectory"][:, self.levels.index(level)].astype(jnp.float32)
      else:
        state = renoised(clean, i - 1, level, 1.0)
      noisy = jnp.where(begins >= i, state, renoised(coarse, i - 1, level))
      coarse = evaluate(model.backbone.transformer, history, noisy, level)
    noisy = renoised(jax.lax.stop_gradient(coarse), -1, settings.refiner)
    made, level = clean, jnp.zeros(clean.shape[:2])
    for _ in range(self.config.loss.rounds + 1):
      own = jax.lax.stop_gradient(made).at[:, 0].set(clean[:, 0])
      made = evaluate(model.student.transformer, (own, level), noisy, settings.refiner)
    seen = jnp.sqrt(self.gains)
    error = self.error(made * seen, clean * seen, clean)
    apart = jnp.abs(self._steps(made, own) - self._steps(clean, clean)) * self.gains
    apart = apart.mean(axis=(0, 2, 3, 4))
    border, *inner = apart.reshape(self.chunks, self.frames).mean(axis=0)
    steps = {"border_error": border, "step_error": sum(inner) / max(len(inner), 1)}
    return error + self.config.loss.steps * sum(steps.values()), {"error": error, **steps}

  def _steps(self, latents: Array, history: Array) -> Array:
    """What each latent [B, F - 1, ...] adds to the one before, at borders to the history's."""
    before = latents[:, :-1].at[:, :: self.frames].set(history[:, : -1 : self.frames])
    return latents[:, 1:] - before
