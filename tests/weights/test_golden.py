"""Our modules beside stored outputs of the public ones (tests/fixtures/golden.py made them)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.weights import layout
from tests.fixtures import golden
from tests.weights.conditions import no_references


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
  with np.load(golden.FILE) as file:
    return dict(file)


def _filled(name: str) -> nnx.Module:
  module = golden.MODELS[name].build()
  layout.fill(golden.MODELS[name].entries, module, golden.weights(name))
  return module


def _assert_equal(found: jax.Array, expected: np.ndarray):
  found = np.asarray(found)
  assert found.shape == expected.shape
  assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_transformer(expected):
  given = golden.inputs()
  latents = given["latents"]
  times = jnp.broadcast_to(given["timestep"][:, None], latents.shape[:2])
  conditions = no_references(golden.TRUNK, jnp.asarray(given["text"]), latents.shape)
  found = jax.jit(_filled("transformer").__call__)(latents, times, conditions)
  _assert_equal(found, expected["transformer"])


def test_autoencoder(expected):
  vae, given = _filled("vae"), golden.inputs()
  _assert_equal(jax.jit(vae.encode_moments)(given["video"])[0], expected["encode"])
  decoded = jax.jit(vae.decode_posterior)(given["vae_latents"])
  _assert_equal(jnp.clip(decoded, -1, 1), expected["decode"])


def test_umt5(expected):
  _assert_equal(jax.jit(_filled("umt5").__call__)(golden.inputs()["tokens"]), expected["umt5"])


@pytest.mark.parametrize("name", ["wav2vec2 base", "wav2vec2 large"])
def test_wav2vec2(name, expected):
  found = jax.jit(_filled(name).__call__)(golden.inputs()["waveform"])
  _assert_equal(found, expected[name])
