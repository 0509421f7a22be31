import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.clip import audio_samples
from lpm_jax.models.audio import AudioConfig
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.text import TextConfig
from lpm_jax.models.transformer import TransformerConfig

CONFIG = LPMConfig(
  transformer=TransformerConfig(
    width=16, heads=2, layers=2, hidden=16, channels=2, text_width=8, audio_width=8
  ),
  audio=AudioConfig(width=8, bands=8, kernel=3, dilations=(1,)),
  text=TextConfig(width=8, heads=2, layers=1, length=4),
)
BATCH, FRAMES, SLOTS = 2, 3, 2
TRACKS = ("speak", "listen")
LOGICAL = {"layers", "embed", "heads", "mlp", "audio", None}


@functools.cache
def make_model() -> LPM:
  """A model whose zero-initialised parameters are awake."""
  model = LPM(CONFIG, rngs=nnx.Rngs(0))
  state = nnx.state(model)
  leaves, treedef = jax.tree.flatten(state)
  rng = np.random.default_rng(1)
  awake = [leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  nnx.update(model, jax.tree.unflatten(treedef, awake))
  return model


def make_batch() -> dict[str, jax.Array]:
  rng = np.random.default_rng(0)
  samples = audio_samples(4 * (FRAMES - 1) + 1)
  batch = {
    "latents": rng.normal(size=(BATCH, FRAMES, 2, 2, 2)),
    "speak_audio": 0.1 * rng.normal(size=(BATCH, samples)),
    "listen_audio": 0.1 * rng.normal(size=(BATCH, samples)),
    "references": rng.normal(size=(BATCH, SLOTS, 2, 2, 2)),
  }
  batch = {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}
  return batch | {
    "text_tokens": jnp.array([[3, 9, 4, 0], [5, 0, 0, 0]]),
    "reference_kind": jnp.array([[0, 2], [0, -1]]),
    "reference_label": jnp.array([[0, 4], [0, 0]]),
  }


@functools.cache
def gradient_function() -> Callable:
  """Gradients of a loss on the first channel with respect to parameters and references."""
  graphdef = nnx.split(make_model())[0]

  def loss(params: nnx.State, references: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    batch = make_batch() | {"references": references}
    conditions = model.encode_conditions(batch)
    velocity = model(batch["latents"], jnp.full((BATCH, FRAMES), 0.5), conditions)
    return jnp.square(velocity[..., 0] - 1.0).sum()

  return jax.jit(jax.grad(loss, argnums=(0, 1)))


def largest(gradients: nnx.State) -> dict[str, float]:
  return {
    "/".join(map(str, path)): float(np.abs(leaf[...]).max())
    for path, leaf in nnx.to_flat_state(gradients)
  }


def test_text_both_tracks_and_references_train_their_encoders():
  params = nnx.split(make_model())[1]
  gradients, references = gradient_function()(params, make_batch()["references"])
  size = largest(gradients)
  for name in ("text/table", "text/position", "speak/project/kernel", "listen/project/kernel"):
    assert size[name] > 0, name
  unused = [name for name, value in size.items() if value == 0]
  assert unused == [f"{name}/null" for name in ("listen", "speak", "text")]
  seen = np.abs(references).max(axis=(2, 3, 4)) > 0
  np.testing.assert_array_equal(seen, [[True, True], [True, False]])


def test_the_audio_values_of_a_new_model_are_zero_and_can_learn():
  model = LPM(CONFIG, rngs=nnx.Rngs(0))
  model.transformer.head.kernel[...] += jax.random.normal(jax.random.key(0), (16, 8))
  for track in TRACKS:
    value = getattr(model.transformer.pairs, track).cross_attention.audio_value
    assert not np.any(value.kernel[...]) and not np.any(value.bias[...])
  size = largest(gradient_function()(nnx.split(model)[1], make_batch()["references"])[0])
  for track in TRACKS:
    assert size[f"transformer/pairs/{track}/cross_attention/audio_value/kernel"] > 0
    assert size[f"{track}/project/kernel"] == 0  # until the values have left zero


@pytest.mark.parametrize("name", ["text", *TRACKS])
def test_dropping_touches_one_condition_of_the_clips_that_drop_it(name):
  model, batch = make_model(), make_batch()
  kept = model.encode_conditions(batch)
  dropped = model.encode_conditions(batch | {f"drop_{name}": jnp.array([False, True])})
  for field in ("text", *TRACKS):
    before, after = getattr(kept, field), getattr(dropped, field)
    np.testing.assert_array_equal(before[0], after[0])
    if field != name:
      np.testing.assert_array_equal(before, after)
  null = getattr(model, name).null[...]
  np.testing.assert_array_equal(
    getattr(dropped, name)[1], np.broadcast_to(null, getattr(kept, name).shape[1:])
  )


def test_silence_is_not_the_null():
  model, batch = make_model(), make_batch()
  for track in TRACKS:
    silent = batch | {f"{track}_audio": jnp.zeros_like(batch[f"{track}_audio"])}
    encoded = getattr(model.encode_conditions(silent), track)
    assert np.abs(encoded - getattr(model, track).null[...]).max() > 0.1


def test_null_conditions_are_those_of_dropped_ones():
  model, batch = make_model(), make_batch()
  every = jnp.ones(BATCH, bool)
  flags = {f"drop_{name}": every for name in ("text", *TRACKS)}
  expected = model.encode_conditions(batch | flags)
  found = model.null_audio(model.null_text(model.encode_conditions(batch)))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_number_of_frames_can_be_given_without_latents():
  model, batch = make_model(), make_batch()
  del batch["latents"]
  assert model.encode_conditions(batch, frames=FRAMES).speak.shape == (BATCH, FRAMES, 4, 8)


def test_every_parameter_names_its_axes():
  for path, leaf in nnx.to_flat_state(nnx.state(make_model())):
    names = leaf.get_metadata()["out_sharding"]
    assert len(names) == leaf[...].ndim, path
    assert set(names) <= LOGICAL, path
    assert ("layers" == names[0]) == ("pairs" in path), path
