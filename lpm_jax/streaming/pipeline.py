"""Backbone, refiner and decoder on devices of their own, a chunk apart from each other.

The backbone's history is its own, so it makes chunk n while the refiner makes n - 1 and the decoder
shows n - 2. Nothing has to be scheduled: JAX returns before the devices are done, each stage waits
for its own input only, and latents go from device to device.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx
from jax import Array

from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.models.vae import VAECache
from lpm_jax.parallel import layout
from lpm_jax.parallel.sharding import Placement
from lpm_jax.streaming.cache import StreamCache
from lpm_jax.streaming.sampler import (
  OnlineLPM,
  StreamSettings,
  StreamState,
  coarse_latents,
  decoded_video,
  refined_latents,
)


class Pipeline:
  """`OnlineLPM.step` in three stages; its results are those of `OnlineLPM`.

  Args:
    online: the models.
    placements: devices of backbone, refiner and decoder; the same ones may serve several. Where
      heads and inner widths lie over `tensor`, tokens come to weights, over `context`, weights to
      tokens.

  Raises ValueError for another number of placements.
  """

  def __init__(self, online: OnlineLPM, placements: Sequence[Placement]):
    if len(placements) != 3:
      raise ValueError(f"placements: found {len(placements)}, expected backbone, refiner, decoder")
    self.settings, self._places = online.settings, tuple(placements)
    modules = online.backbone, online.refiner, online.vae
    self._graphs, states = zip(*map(nnx.split, modules), strict=True)
    self._states = [
      place.put_module(state) for place, state in zip(placements, states, strict=True)
    ]

  def place(self, state: StreamState) -> StreamState:
    """The state of a stream that begins (`OnlineLPM.begin`), each part at its stage."""
    axes = state.axes()
    parts = {
      name: place.put(getattr(state, name), getattr(axes, name))
      for name, place in zip(("backbone", "refiner", "decoder"), self._places, strict=True)
    }
    return state.replace(key=self._places[0].put_whole(state.key), **parts)

  def step(self, state: StreamState, conditions: Conditions) -> tuple[StreamState, Array, Array]:
    """See `OnlineLPM.step`; returns before the chunk is made. `state` must not be used again."""
    first, second, third = self._places
    conditions = conditions.without_references()
    noise, again = state.keys()
    with jax.set_mesh(first.mesh):
      coarse, backbone = _coarse(
        self._graphs[0],
        first,
        self.settings,
        state.shape,
        self._states[0],
        state.backbone,
        first.put_whole(conditions),
        noise,
      )
    with jax.set_mesh(second.mesh):
      refined, refiner = _refined(
        self._graphs[1],
        second,
        self.settings,
        self._states[1],
        state.refiner,
        second.put_whole(conditions),
        second.put_whole(again),
        second.put_whole(coarse),
      )
    with jax.set_mesh(third.mesh):
      video, decoder = _decode(
        self._graphs[2], third, self._states[2], state.decoder, third.put_whole(refined)
      )
    return state.replace(backbone=backbone, refiner=refiner, decoder=decoder), refined, video


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _coarse(
  graphdef: nnx.GraphDef[VideoTransformer],
  place: Placement,
  settings: StreamSettings,
  shape: tuple[int, ...],
  model: nnx.State,
  cache: StreamCache,
  conditions: Conditions,
  key: Array,
) -> tuple[Array, StreamCache]:
  backbone = nnx.merge(graphdef, model)
  with layout.in_force(stored=dict(place.rules)):
    coarse, cache = coarse_latents(backbone, cache, settings, conditions, key, shape)
  return coarse, place.keep(cache, cache.axes())


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _refined(
  graphdef: nnx.GraphDef[VideoTransformer],
  place: Placement,
  settings: StreamSettings,
  model: nnx.State,
  cache: StreamCache,
  conditions: Conditions,
  key: Array,
  coarse: Array,
) -> tuple[Array, StreamCache]:
  refiner = nnx.merge(graphdef, model)
  with layout.in_force(stored=dict(place.rules)):
    refined, cache = refined_latents(refiner, cache, settings, conditions, key, coarse)
  return refined, place.keep(cache, cache.axes())


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _decode(
  graphdef: nnx.GraphDef, place: Placement, model: nnx.State, cache: VAECache, latents: Array
) -> tuple[Array, VAECache]:
  video, cache = decoded_video(nnx.merge(graphdef, model), cache, latents)
  return video, place.keep(cache, cache.axes())
