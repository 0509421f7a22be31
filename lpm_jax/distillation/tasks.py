"""The stages that match distributions, as tasks of the training loop.

2. `OffPolicyTask`: on noised latents of clips.
3. `OnPolicyTask`: on the backbone's own streams, which may go on from step to step, with other
   sound and text.
4. `RefinerTask`: the refiner, on streams of the frozen backbone.

The first one is `regression.py`. LPM 1.0, section 4.2; docs/distillation.md.
"""

import abc
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from data_pipelines.loader import EXTENSION
from lpm_jax.diffusion import flow, guidance
from lpm_jax.distillation import heard, matching, replay, rollout
from lpm_jax.distillation.networks import Distilled, forced_velocity
from lpm_jax.distillation.online_task import OnlineTask, fill_student
from lpm_jax.distillation.regression import seen_history
from lpm_jax.distillation.running import Running, Window
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.lpm import LPM
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.training.base import CONDITIONS
from lpm_jax.training.optimiser import make_optimiser
from lpm_jax.training.samples import encode_window
from lpm_jax.weights import loading

TURN, BEGINNING = "student_turn", "stream_begins"  # names of branches, see plan/branches.py


class MatchingTask(OnlineTask):
  """Distribution matching; the stages say how the student's latents come about.

  The fake score learns in every step, the student in one of `config.loss.every`.

  Args:
    config: with `loss` (shift, guidance of the teacher for text and audio, every, and what a stage
      needs) and `optimiser`, whose sections `student` and `fake` are those of other tasks.
  """

  needs_backbone = False

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    if config.get("guard", {}).get("policy") == "skip":  # its optimisers would miss their turns
      raise ValueError("guard.policy: found 'skip', expected 'stop' or 'rewind'")

  def build(self, rngs: nnx.Rngs) -> Distilled:
    """Student, teacher and fake score."""
    return Distilled(
      self.model_config,
      scores=True,
      backbone=self.needs_backbone,
      frozen_dtype=self.config.get("frozen_dtype"),
      rngs=rngs,
    )

  def initialiser(self) -> Callable[[Distilled], object]:
    """Weights of the folders `config.student`, `teacher` and, for the refiner, `backbone`."""

    def fill(model: Distilled):
      fill_student(self.config.student, model.student)
      loading.initialiser(self.config.teacher, "base")(model.scores.teacher)
      teacher = nnx.state(model.scores.teacher.transformer)
      weights = {path: leaf[...] for path, leaf in nnx.to_flat_state(teacher)}
      fake = nnx.to_flat_state(nnx.state(model.scores.fake))
      started = [(path, leaf.replace(jnp.array(weights[path], leaf.dtype))) for path, leaf in fake]
      nnx.update(model.scores.fake, nnx.from_flat_state(started))
      if self.needs_backbone:
        loading.initialiser(self.config.backbone, "backbone")(model.backbone)

    return fill

  def exported(self, model: Distilled) -> LPM:
    """The student."""
    return model.student

  def streaming(self, model: Distilled) -> tuple[LPM, VideoTransformer]:
    """The student is both."""
    return model.student, model.student.transformer

  def optimiser(self) -> optax.GradientTransformation:
    """One for the student, which moves in one of `every` steps, and one for the fake score.

    Encoders stay as they are: they hear and read for all networks alike.
    """
    config, every = self.config.optimiser, self.config.loss.every
    student = make_optimiser(config.student, -(-self.config.steps // every))
    parts = {
      "student": optax.transforms.conditionally_mask(student, lambda step: step % every == 0),
      "fake": make_optimiser(config.fake, self.config.steps),
      "still": optax.set_to_zero(),
    }

    def label(path: tuple, _: Array) -> str:
      names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
      if names[0] == "scores":
        return "fake"
      return "still" if names[1] in CONDITIONS else "student"

    return optax.partition(parts, functools.partial(jax.tree_util.tree_map_with_path, label))

  def draw(self, batch: dict, key: Array) -> dict[str, Array]:
    """Nothing here: a rollout draws for all of its clips."""
    return {}

  @abc.abstractmethod
  def made(self, model: Distilled, batch: dict, key: Array, step: Array) -> Window:
    """What the student makes, in a window that the scores look at."""

  def loss(self, model: Distilled, batch: dict, key: Array, step: Array):
    """Loss of the fake score and, in one of `every` steps, of the student."""
    of_made, of_scores = jax.random.split(key)
    window = self.made(model, batch, of_made, step)
    noise_key, t_key = jax.random.split(of_scores)
    latents = window.latents
    made = jax.lax.stop_gradient(latents)
    weight = window.weight()
    t = matching.draw_timesteps(t_key, len(made), self.config.loss.shift)[:, None] * weight
    noise = jax.random.normal(noise_key, made.shape)
    noisy = flow.add_noise(made, noise, t)
    conditions = jax.lax.stop_gradient(window.conditions)
    velocity = model.scores.fake(noisy, t, conditions)
    fake_loss = flow.flow_loss(velocity, noise - made, weight)

    def of_student() -> Array:
      strengths = self.config.loss.guidance
      real = guidance.guided_velocity(model.scores.teacher, conditions, *strengths)(noisy, t)
      predictions = (flow.velocity_to_clean(noisy, v, t) for v in (velocity, real))
      towards = matching.direction(made, *predictions, weight)
      return matching.matching_loss(latents, jax.lax.stop_gradient(towards), weight)

    is_due = step % self.config.loss.every == 0
    with jax.named_scope(TURN):
      student_loss = jax.lax.cond(is_due, of_student, lambda: jnp.zeros(()))
    extra = self.regularised(window, batch) * is_due
    metrics = {"fake_loss": fake_loss, "matching_loss": student_loss, "regression_loss": extra}
    return fake_loss + student_loss + extra, metrics

  def shares(self) -> dict[str, float]:
    """In how many steps branches are taken: the student's turn."""
    return dict.fromkeys((TURN, replay.SCOPE), 1.0 / self.config.loss.every)

  def regularised(self, window: Window, batch: dict) -> Array:
    """A further loss of the student; none by default."""
    del window, batch
    return jnp.zeros(())

  def teacher_conditions(self, model: Distilled, batch: dict) -> Conditions:
    """What teacher and fake score are given: whole tracks, as Base was trained."""
    return encode_window(model.scores.teacher, batch)


class OffPolicyTask(MatchingTask):
  """Stage 2: clips, each chunk noised to one of the backbone's levels; earlier chunks are true.

  `config.loss.regression` weighs the squared distance to the clip, against the collapse of modes.
  """

  def made(self, model: Distilled, batch: dict, key: Array, step: Array) -> Window:
    del step
    clean = batch["latents"].astype(jnp.float32)
    keys = jax.random.split(key, 3)
    levels = jnp.asarray(self.settings.backbone)
    drawn = jax.random.randint(keys[0], (len(clean), self.chunks), 0, len(levels))
    t = jnp.repeat(levels[drawn], self.frames, axis=1)
    t = jnp.concatenate([jnp.zeros((len(clean), 1)), t], axis=1)
    noise, of_history = (jax.random.normal(k, clean.shape) for k in keys[1:])
    noisy = flow.add_noise(clean, noise, t)
    streamed = heard.streamed_conditions(model.student, batch, self.chunks, self.frames)
    conditions = jax.lax.stop_gradient(heard.whole(*streamed, self.frames))
    graphdef, state = nnx.split(model.student.transformer)

    def run(state: nnx.State, given: tuple) -> Array:
      history, past, noisy, t, conditions = given
      velocity = forced_velocity(
        nnx.merge(graphdef, state), self.settings.causal, history, past, noisy, t, conditions
      )
      return flow.velocity_to_clean(noisy, velocity, t)

    given = *seen_history(self.settings, clean, of_history), noisy, t, conditions
    made = replay.replayed(run, state, given)
    latents = jnp.concatenate([clean[:, :1], made[:, 1:]], axis=1)
    return Window(latents, self.teacher_conditions(model, batch), jnp.int32(1))

  def regularised(self, window: Window, batch: dict) -> Array:
    clean = batch["latents"].astype(jnp.float32)
    apart = jnp.square(window.latents - clean).mean()
    return self.config.loss.regression * apart


class OnPolicyTask(MatchingTask):
  """Stage 3: the backbone's own streams, each `config.loss.horizon` steps long.

  A step rolls a stream `data.chunks` chunks further, with the sound and the text of another clip;
  the character stays. Histories are corrupted with probability `loss.corrupted`, up to the timestep
  `loss.corrupted_to`.
  """

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    self.horizon = config.loss.horizon
    if self.horizon > 1 and config.get("accumulate", 1) > 1:
      raise ValueError("loss.horizon: streams that go on need accumulate 1")
    if math.gcd(self.horizon, config.loss.every) > 1:
      raise ValueError(
        f"loss.horizon, loss.every: found {self.horizon} and {config.loss.every}, expected numbers "
        "without a common factor: the student would never learn from streams of some ages"
      )

  def build(self, rngs: nnx.Rngs) -> Distilled:
    model = super().build(rngs)
    if self.horizon > 1:
      model.running = Running(self._begin, model, self.abstract_batch(self.config.batch_size))
    return model

  def _begin(self, model: Distilled, batch: dict) -> tuple[StreamCache, Window]:
    """Streams of the batch's pictures, before their first chunk."""
    beginning, _ = heard.streamed_conditions(model.student, batch, self.chunks, self.frames)
    picture = batch["latents"][:, :1].astype(jnp.float32)
    left = model.student.transformer.remember(picture, beginning)
    cache = StreamCache.empty(left, self.settings.causal)
    return jax.lax.stop_gradient((cache, Window(picture, beginning, jnp.int32(1))))

  def made(self, model: Distilled, batch: dict, key: Array, step: Array) -> Window:
    keys = jax.random.split(key, 4)
    _, chunks = heard.streamed_conditions(model.student, batch, self.chunks, self.frames)
    begin = functools.partial(self._begin, model, batch)
    if self.horizon > 1:
      is_fresh = step % self.horizon == 0
      with jax.named_scope(BEGINNING):
        cache, before = jax.lax.cond(is_fresh, begin, model.running.read)
      known = jax.random.randint(keys[3], (), EXTENSION[0], EXTENSION[1] + 1)
      known = jnp.where(is_fresh, 1, known)
    else:
      (cache, before), known = begin(), jnp.int32(1)
    how = self.settings.of_backbone()
    script = self._script(how, chunks, before.latents, keys)
    made, cache = rollout.roll_out(model.student.transformer, how, cache, script)
    latents = jnp.concatenate([before.latents, _joined(made)], axis=1)
    if self.horizon > 1:
      model.running.write(cache, latents[:, -1:], before.conditions)
    conditions = self.teacher_conditions(model, _of_stream(batch, before.conditions))
    return Window(latents, conditions, known)

  def shares(self) -> dict[str, float]:
    """Also the beginning of streams, and evaluations, up to an exit that is drawn."""
    count = len(self.settings.backbone)
    evaluations = {f"{rollout.EVALUATION}{i}": (count - i) / count for i in range(count)}
    return super().shares() | {BEGINNING: 1.0 / self.horizon} | evaluations

  def _script(self, how, chunks: Conditions, picture: Array, keys: Array) -> rollout.Script:
    settings = self.config.loss
    count, shape = self.chunks, (self.chunks, len(picture), self.frames, *picture.shape[2:])
    return rollout.Script(
      conditions=jax.lax.stop_gradient(chunks),
      keys=jax.random.split(keys[0], count),
      given=jnp.zeros(shape),
      exit=rollout.draw_exit(keys[1], how),
      history=rollout.draw_history(keys[2], how, count, settings.corrupted, settings.corrupted_to),
    )


class RefinerTask(MatchingTask):
  """Stage 4: the refiner on streams of the frozen backbone (folder `config.backbone`)."""

  needs_backbone = True

  def streaming(self, model: Distilled) -> tuple[LPM, VideoTransformer]:
    """The frozen backbone, and the student."""
    return model.backbone, model.student.transformer

  def made(self, model: Distilled, batch: dict, key: Array, step: Array) -> Window:
    del step
    keys = jax.random.split(key, 2)
    picture = batch["latents"][:, :1].astype(jnp.float32)
    given = jnp.zeros((self.chunks, len(picture), self.frames, *picture.shape[2:]))
    for lpm, how, of_model in (
      (model.backbone, self.settings.of_backbone(), keys[0]),
      (model.student, self.settings.of_refiner(), keys[1]),
    ):
      # The refiner's encoders are never used where it streams: both hear through the backbone's.
      beginning, chunks = heard.streamed_conditions(model.backbone, batch, self.chunks, self.frames)
      cache = StreamCache.empty(lpm.transformer.remember(picture, beginning), self.settings.causal)
      script = rollout.Script(
        conditions=jax.lax.stop_gradient(chunks),
        keys=jax.random.split(of_model, self.chunks),
        given=jax.lax.stop_gradient(given),
        exit=jnp.int32(len(how.levels) - 1),
        history=jnp.full(self.chunks, how.history or 0.0),
      )
      cache = jax.lax.stop_gradient(cache)
      given, _ = rollout.roll_out(lpm.transformer, how, cache, script)
    latents = jnp.concatenate([picture, _joined(given)], axis=1)
    return Window(latents, self.teacher_conditions(model, batch), jnp.int32(1))


def _joined(chunks: Array) -> Array:
  """[n, B, f, ...] -> [B, n f, ...]."""
  return rearrange(chunks, "n b f ... -> b (n f) ...")


def _of_stream(batch: dict, conditions: Conditions) -> dict:
  """The batch with the references of the streams that it continues."""
  names = ("references", "reference_kind", "reference_label")
  return batch | {name: getattr(conditions, name) for name in names}
