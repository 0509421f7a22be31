import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models import flash
from lpm_jax.models.blocks import Stream
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.context import Grids
from lpm_jax.models.identity import ReferenceOffsets
from lpm_jax.models.remat import POLICIES
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer

TINY = TransformerConfig(
  width=24,
  heads=2,
  layers=2,
  hidden=32,
  channels=2,
  text_width=5,
  audio_width=6,
  speak_window=(1, 1),
  listen_window=(2, 1),
)
BATCH, FRAMES, SLOTS = 2, 5, 3


def randomise(model: nnx.Module, key: jax.Array, *, skip: str = "never") -> nnx.Module:
  """Random values in place of the zeros of a new model, but for paths that hold `skip`."""
  flat = nnx.to_flat_state(nnx.state(model))
  new = []
  for i, (path, leaf) in enumerate(flat):
    noise = 0.3 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
    keep = skip in "/".join(map(str, path))
    new.append((path, leaf if keep else leaf.replace(leaf[...] + noise)))
  nnx.update(model, nnx.from_flat_state(new))
  return model


def make_model(config: TransformerConfig = TINY, *, skip: str = "never") -> VideoTransformer:
  return randomise(VideoTransformer(config, rngs=nnx.Rngs(0)), jax.random.key(1), skip=skip)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, state: nnx.State, *inputs) -> jax.Array:
  return nnx.merge(graphdef, state)(*inputs)


def run(model: VideoTransformer, *inputs) -> jax.Array:
  """model(*inputs), compiled once for all models of a config."""
  return _forward(*nnx.split(model), *inputs)


def make_inputs(seed: int = 0, frames: int = FRAMES) -> tuple[jax.Array, jax.Array, Conditions]:
  keys = iter(jax.random.split(jax.random.key(seed), 8))
  latents = jax.random.normal(next(keys), (BATCH, frames, 4, 4, 2))
  timestep = jnp.full((BATCH, frames), 0.6).at[:, 0].set(0.0)
  conditions = Conditions(
    text=jax.random.normal(next(keys), (BATCH, 4, 5)),
    speak=jax.random.normal(next(keys), (BATCH, frames, 4, 6)),
    listen=jax.random.normal(next(keys), (BATCH, frames, 4, 6)),
    references=jax.random.normal(next(keys), (BATCH, SLOTS, 4, 4, 2)),
    reference_kind=jnp.array([[0, 1, 2], [0, 2, -1]]),
    reference_label=jnp.array([[0, 3, 5], [0, 1, 0]]),
  )
  return latents, timestep, conditions


def test_zero_audio_values_equal_the_audio_free_trunk():
  model = make_model(skip="audio_value")
  latents, timestep, conditions = make_inputs()
  heard = run(model, latents, timestep, conditions)
  louder = conditions.replace(speak=9 * conditions.speak, listen=-conditions.listen)
  np.testing.assert_array_equal(heard, run(model, latents, timestep, louder))
  silenced = make_model(skip="audio_value")
  for block in (silenced.pairs.speak, silenced.pairs.listen):
    block.cross_attention.audio_out.kernel[...] *= 0.0
  np.testing.assert_allclose(heard, run(silenced, latents, timestep, conditions), atol=1e-6)


def test_speak_audio_acts_in_even_blocks_and_listen_audio_in_odd_ones():
  latents, timestep, conditions = make_inputs()
  for track, block in (("speak", "listen"), ("listen", "speak")):
    model = make_model()  # cut the blocks that should not hear this track: it must still act
    getattr(model.pairs, block).cross_attention.audio_out.kernel[...] *= 0.0
    changed = conditions.replace(**{track: -getattr(conditions, track)})
    before = run(model, latents, timestep, conditions)
    assert np.abs(before - run(model, latents, timestep, changed)).max() > 1e-3
    getattr(model.pairs, track).cross_attention.audio_out.kernel[...] *= 0.0
    before = run(model, latents, timestep, conditions)
    np.testing.assert_array_equal(before, run(model, latents, timestep, changed))


@pytest.mark.parametrize(("name", "window"), [("speak", (1, 1)), ("listen", (2, 1))])
def test_audio_outside_its_window_has_zero_gradient(name, window):
  block = getattr(make_model().pairs, name).cross_attention
  graphdef, state = nnx.split(block)
  block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], state))
  x = jax.random.normal(jax.random.key(0), (1, FRAMES, 4, 24))
  audio = jax.random.normal(jax.random.key(1), (1, FRAMES, 4, 6))
  grids = Grids(FRAMES, jnp.ones((1, FRAMES), bool))
  nowhere = (jnp.zeros((1, 4 * FRAMES, 12)),) * 2
  stream = Stream(turn=nowhere, grids=grids, text=jnp.ones((1, 2, 24)), frames=FRAMES, tokens=4)
  for frame in range(FRAMES):
    gradient = jax.grad(lambda a, f=frame: jnp.square(block(x, a, stream)[:, f]).sum())(audio)
    heard = np.abs(gradient).max(axis=(0, 2, 3)) > 0
    expected = [frame - window[0] <= k <= frame + window[1] for k in range(FRAMES)]
    np.testing.assert_array_equal(heard, expected)


def test_permuting_references_with_their_labels_changes_nothing():
  model = make_model()
  latents, timestep, conditions = make_inputs()
  order = jnp.array([2, 0, 1])
  permuted = conditions.replace(
    references=conditions.references[:, order],
    reference_kind=conditions.reference_kind[:, order],
    reference_label=conditions.reference_label[:, order],
  )
  out = run(model, latents, timestep, conditions)
  np.testing.assert_allclose(out, run(model, latents, timestep, permuted), rtol=1e-5, atol=1e-5)
  mislabelled = conditions.replace(reference_kind=conditions.reference_kind[:, order])
  assert np.abs(out - run(model, latents, timestep, mislabelled)).max() > 1e-3


def test_an_empty_slot_equals_no_slot():
  model = make_model()
  latents, timestep, conditions = make_inputs()
  empty = conditions.replace(reference_kind=jnp.full((BATCH, SLOTS), -1))
  none = conditions.replace(
    references=conditions.references[:, :0],
    reference_kind=conditions.reference_kind[:, :0],
    reference_label=conditions.reference_label[:, :0],
  )
  without = run(model, latents, timestep, none)
  np.testing.assert_allclose(run(model, latents, timestep, empty), without, rtol=1e-5, atol=1e-5)
  only_views = conditions.replace(reference_kind=jnp.array([[-1, 1, -1], [-1, 1, -1]]))
  assert np.abs(run(model, latents, timestep, only_views) - without).max() > 1e-3


def test_timesteps_act_per_latent_frame():
  model = make_model()
  latents, timestep, conditions = make_inputs()
  for block in (model.pairs.speak, model.pairs.listen):  # leave only what acts within a frame
    block.self_attention.out.kernel[...] *= 0.0
  out = run(model, latents, timestep, conditions)
  later = run(model, latents, timestep.at[:, 3].set(0.9), conditions)
  changed = np.abs(out - later).max(axis=(0, 2, 3, 4)) > 0
  np.testing.assert_array_equal(changed, [False, False, False, True, False])


def test_the_time_of_frames_is_relative_and_counts_from_zero_by_default():
  model = make_model()
  latents, timestep, conditions = make_inputs()
  conditions = conditions.without_references()
  out = run(model, latents, timestep, conditions)
  time = jnp.broadcast_to(jnp.arange(FRAMES), (BATCH, FRAMES))
  np.testing.assert_allclose(run(model, latents, timestep, conditions, None, time), out, atol=1e-5)
  moved = run(model, latents, timestep, conditions, None, time + 7)
  np.testing.assert_allclose(moved, out, rtol=1e-3, atol=1e-4)
  apart = run(model, latents, timestep, conditions, None, time.at[:, 1:].add(7))
  assert np.abs(apart - out).max() > 1e-2


def gradient(remat: str) -> tuple[list[np.ndarray], str]:
  """Of all parameters, and the traced program; attention in parts, which has residuals."""
  latents, timestep, conditions = make_inputs()
  model = make_model(dataclasses.replace(TINY, remat=remat, attention="splash"))
  graphdef, state = nnx.split(model)
  loss = lambda s: jnp.square(nnx.merge(graphdef, s)(latents, timestep, conditions)).sum()  # noqa: E731
  run = jax.jit(jax.grad(loss)).trace(state)
  made = run.lower().compile()(state)
  return [np.asarray(x) for x in jax.tree.leaves(made)], str(run.jaxpr)


def test_remat_changes_no_gradient(monkeypatch):
  monkeypatch.setitem(flash._KERNELS, "splash", flash.Dense)  # the kernel interpreted is slow
  plain, _ = gradient("none")
  for policy, (_, sent) in POLICIES.items():
    saved, program = gradient(policy)
    assert ("host" in program) == bool(sent), f"{policy}: what is sent there"
    for one, other in zip(plain, saved, strict=True):
      scale = np.abs(one).max()  # small entries are sums of large terms: fp32 rounds at their size
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale, err_msg=policy)


def test_reference_indices_are_disjoint_and_outside_the_longest_clip():
  offsets = ReferenceOffsets()
  found = [int(offsets(jnp.array(0), jnp.array(0)))]
  found += [int(offsets(jnp.array(1), jnp.array(label))) for label in range(4)]
  found += [int(offsets(jnp.array(2), jnp.array(label))) for label in range(8)]
  assert len(set(found)) == 13
  assert min(found) > 8 * 6  # 8 s are 49 latent frames


def test_lpm_17b_counts_the_published_parameters():
  shapes = nnx.state(
    nnx.eval_shape(lambda: VideoTransformer(TransformerConfig.lpm_17b(), rngs=nnx.Rngs(0)))
  )
  total = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes))
  audio = sum(
    np.prod(leaf.shape, dtype=np.int64)
    for path, leaf in nnx.to_flat_state(shapes)
    if any("audio" in str(key) for key in path)
  )
  assert abs(total / 1e9 - 17.435) < 0.001
  assert abs(audio / 1e9 - 3.147) < 0.001
  assert abs((total - audio) / 1e9 - 14.288) < 0.001


@pytest.mark.parametrize("field", ["text", "speak", "listen", "references", "reference_label"])
def test_a_wrong_shape_names_its_field(field):
  model = make_model()
  latents, timestep, conditions = make_inputs()
  wrong = conditions.replace(**{field: getattr(conditions, field)[:1]})
  with pytest.raises(ValueError, match=f"{field}|reference_kind"):
    run(model, latents, timestep, wrong)
