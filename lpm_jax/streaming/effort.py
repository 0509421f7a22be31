"""How much work a chunk gets: fewer evaluations when time is short, and who decides it.

Every effort takes and leaves a state of the same shapes, so any may follow any. Each is a compiled
program of its own, made in `Performer.warm_up`.
"""

import collections
import dataclasses
import enum
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from lpm_jax.models.conditions import Conditions
from lpm_jax.streaming.sampler import (
  OnlineLPM,
  StreamSettings,
  StreamState,
  coarse_latents,
  decoded_video,
  refined_latents,
)


class Effort(enum.IntEnum):
  """From the dearest to the cheapest.

  FULL: every evaluation. SHORT: one evaluation of the backbone; the refiner mends what it can.
  COARSE: that one alone, the refiner only takes the result into its cache.
  """

  FULL = 0
  SHORT = 1
  COARSE = 2


def efforts(settings: StreamSettings) -> tuple[Effort, ...]:
  """Those that differ at these settings, in order: SHORT is FULL where the backbone has one."""
  return tuple(e for e in Effort if e is not Effort.SHORT or len(settings.backbone) > 1)


def chunk(
  online: OnlineLPM, effort: Effort, state: StreamState, conditions: Conditions
) -> tuple[StreamState, Array, Array]:
  """`OnlineLPM.step` with this effort."""
  if effort is Effort.FULL:
    return online.step(state, conditions)
  settings = dataclasses.replace(online.settings, backbone=online.settings.backbone[:1])
  conditions = conditions.without_references()
  noise, again = state.keys()
  latents, backbone = coarse_latents(
    online.backbone, state.backbone, settings, conditions, noise, state.shape
  )
  if effort is Effort.SHORT:
    latents, refiner = refined_latents(
      online.refiner, state.refiner, settings, conditions, again, latents
    )
  else:
    clean, cache = jnp.zeros((len(latents), 1)), state.refiner
    past = [online.refiner.turned(view, *latents.shape[2:4]) for view in cache.view()]
    _, kept = online.refiner.extend(latents, clean, conditions, past, cache.start())
    refiner = cache.pushed(kept)
  video, decoder = decoded_video(online.vae, state.decoder, latents)
  return state.replace(backbone=backbone, refiner=refiner, decoder=decoder), latents, video


class Pace:
  """Chooses the effort of the next chunk so that it is ready in time.

  A chunk is expected to take what its effort took in warm-up, times the slowness of the machine:
  the worst ratio among the last chunks. So one slow chunk costs the next few some quality, and full
  effort is back as soon as the machine is.

  Args:
    seconds: of each effort in warm-up, from the dearest to the cheapest.
    memory: chunks that are looked back on.
  """

  def __init__(self, seconds: Mapping[Effort, float], memory: int = 3):
    self._seconds = dict(sorted(seconds.items()))
    self._ratios: collections.deque[float] = collections.deque([1.0], maxlen=memory)

  def choose(self, slack: float) -> Effort:
    """The dearest effort that fits into `slack` seconds, or the cheapest."""
    slowness = max(self._ratios)
    fitting = (e for e, seconds in self._seconds.items() if seconds * slowness <= slack)
    return next(fitting, max(self._seconds))

  def took(self, effort: Effort, seconds: float):
    """A chunk of this effort took so long."""
    self._ratios.append(seconds / self._seconds[effort])
