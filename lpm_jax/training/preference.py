"""Preference tuning of Base: Diffusion-DPO (arXiv 2311.12908) for flow matching.

Of two videos of one clip the better is to become likelier than it is to a frozen reference, the
model as it was. beta does not depend on the timestep (Flow-DPO, arXiv 2501.13918), and the flow
matching loss of the better video keeps the model where videos are (LPM 1.0: against colour shift).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from data_pipelines.clip import EncodedClip
from data_pipelines.loader import ExampleConfig, preference_example
from lpm_jax.diffusion import flow
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.training import samples
from lpm_jax.training.base import BaseTask
from lpm_jax.training.curriculum import Stage
from lpm_jax.training.frozen import freeze
from lpm_jax.weights import loading


class Tuned(nnx.Module):
  """A model that learns and the same one, frozen, as it was.

  Attributes:
    student: learns, is exported.
    reference: frozen.
  """

  def __init__(self, config: LPMConfig, *, rngs: nnx.Rngs):
    self.student = LPM(config, rngs=rngs)
    self.reference = freeze(LPM(config, rngs=rngs))


class PreferenceTask(BaseTask):
  """Base on pairs of `lpm prefer`: records with a winner and a loser.

  Windows begin with their clips and show all references of a record, for these are the conditions
  that both videos were made under.

  Args:
    config: that of BaseTask, with `reference`, a folder of weights from which student and reference
      start, and `loss.beta` and `loss.regulariser`, see `preference_loss`.

  Raises ValueError for stages whose windows begin elsewhere, and for a beta that is not positive.
  """

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    if not config.loss.beta > 0.0 or not config.loss.regulariser >= 0.0:
      raise ValueError(
        f"loss.beta, loss.regulariser: found {config.loss.beta}, {config.loss.regulariser}, "
        "expected a positive number, and one that is not negative"
      )
    for stage in self.curriculum:
      if stage.extension or stage.random_start or stage.twins:
        raise ValueError(
          f"stage {stage.name!r}: extension, random_start, twins: expected none: what is preferred "
          "begins with its clip"
        )

  def build(self, rngs: nnx.Rngs) -> Tuned:
    """Student and reference."""
    return Tuned(self.model_config, rngs=rngs)

  def initialiser(self) -> Callable[[Tuned], None]:
    """Both start from the Base in the folder `config.reference`."""

    def fill(model: Tuned):
      of_base = loading.initialiser(self.config.reference, "base")
      of_base(model.student)
      of_base(model.reference)

    return fill

  def exported(self, model: Tuned) -> LPM:
    """The student."""
    return model.student

  def window(
    self, clip: EncodedClip, rng: np.random.Generator, cut: ExampleConfig
  ) -> dict[str, np.ndarray]:
    """The winner as latents, and the loser."""
    return preference_example(clip, rng, cut)

  def _example_config(self, stage: Stage) -> ExampleConfig:
    every = dict(global_reference=1.0, extra_references=1.0, filled=1.0)
    return dataclasses.replace(super()._example_config(stage), **every)

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of `size` pairs."""
    batch = super().abstract_batch(size)
    made = jax.ShapeDtypeStruct(batch["latents"].shape, jnp.float16)
    return {**batch, "latents": made, "loser": made}

  def loss(self, model: Tuned, batch: dict, key: Array, step: Array):
    """`preference_loss` of both videos, with one timestep, one noise and the same dropped tracks.

    Metrics: `preference_loss` and `flow_loss`, the two parts; `reward_winner` and `reward_loser`,
    beta / 2 times what the student's error is below the reference's; `reward_margin`, their
    difference; `implicit_accuracy`, the share of pairs with a positive one, ties halved.
    """
    del step
    if "noise" not in batch:
      batch = {**batch, **self.draw(batch, key)}
    pairs = jnp.stack([batch["latents"], batch["loser"]], axis=1).astype(jnp.float32)
    unknown = (jnp.arange(pairs.shape[2]) > 0).astype(jnp.float32)
    t = jnp.repeat(batch["t"][:, None] * unknown, 2, axis=0)
    noise, time = (jnp.repeat(batch[name], 2, axis=0) for name in ("noise", "time"))
    clean = rearrange(pairs, "b two ... -> (b two) ...")  # pairs stay where their clip is
    noisy, settings = flow.add_noise(clean, noise, t), self.config.loss
    weight = jnp.broadcast_to(unknown, t.shape)
    place = 1.0 - settings.motion + settings.motion * flow.motion_map(clean)

    def errors(lpm: LPM) -> Array:
      conditions = samples.encode_window(lpm, batch)
      conditions = jax.tree.map(functools.partial(jnp.repeat, repeats=2, axis=0), conditions)
      found = flow.clip_errors(lpm(noisy, t, conditions, time), noise - clean, weight, place)
      return found.reshape(-1, 2)

    before = jax.lax.stop_gradient(errors(model.reference))
    return preference_loss(errors(model.student), before, settings.beta, settings.regulariser)


def preference_loss(
  errors: Array, before: Array, beta: float, regulariser: float
) -> tuple[Array, dict[str, Array]]:
  """Mean over pairs of -log sigmoid(r_w - r_l) + regulariser e_w, with r = beta / 2 (before - e).

  Args:
    errors, before: mean squared velocity errors e of student and reference, fp32 [B, 2], the
      winner's first. beta counts for means over numbers, as in the code of Diffusion-DPO, so the
      length of the schedule is in it.

  Returns the loss and its metrics, see `PreferenceTask.loss`.
  """
  winner, loser = (0.5 * beta * (before - errors)).T
  margin = winner - loser
  preference, matching = -jax.nn.log_sigmoid(margin).mean(), errors[:, 0].mean()
  return preference + regulariser * matching, {
    "preference_loss": preference,
    "flow_loss": matching,
    "implicit_accuracy": (0.5 + 0.5 * jnp.sign(margin)).mean(),
    "reward_margin": margin.mean(),
    "reward_winner": winner.mean(),
    "reward_loser": loser.mean(),
  }
