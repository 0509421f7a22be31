import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.diffusion import solvers
from lpm_jax.diffusion.guidance import guided_velocity
from lpm_jax.models.conditions import Conditions

SHAPE = (2, 3, 2, 2, 1)


class Echo:
  """A model whose velocity names what it was given: 1 for identity, 10 for text, 100 for audio."""

  def __init__(self):
    self.calls = []

  def null_text(self, conditions: Conditions) -> Conditions:
    return conditions.replace(text=jnp.zeros_like(conditions.text))

  def null_audio(self, conditions: Conditions) -> Conditions:
    zeros = {name: jnp.zeros_like(getattr(conditions, name)) for name in ("speak", "listen")}
    return conditions.replace(**zeros)

  def __call__(self, latents: jax.Array, timestep: jax.Array, c: Conditions) -> jax.Array:
    self.calls.append(latents.shape)
    assert timestep.shape == latents.shape[:2]
    given = c.references.mean((1, 2, 3, 4)) + c.text.mean((1, 2))
    given = given + (c.speak + c.listen).mean((1, 2, 3))
    return given[:, None, None, None, None] * timestep[:, :, None, None, None] + 0 * latents


def make_conditions() -> Conditions:
  clip = jnp.array([1.0, 2.0])  # the second clip has everything twice
  labels = jnp.zeros((2, 1), jnp.int32)
  return Conditions(
    text=10 * jnp.ones((2, 4, 3)) * clip[:, None, None],
    speak=50 * jnp.ones((2, 3, 4, 3)) * clip[:, None, None, None],
    listen=50 * jnp.ones((2, 3, 4, 3)) * clip[:, None, None, None],
    references=jnp.ones((2, 1, 2, 2, 1)) * clip[:, None, None, None, None],
    reference_kind=labels,
    reference_label=labels,
  )


@pytest.mark.parametrize(
  ("text", "audio", "expected"),
  [(1.0, 1.0, 111.0), (0.0, 0.0, 1.0), (3.0, 1.0, 131.0), (1.0, 3.0, 311.0), (5.0, 4.0, 451.0)],
)
def test_text_and_audio_are_strengthened_apart(text, audio, expected):
  model = Echo()
  timestep = jnp.array([[0.0, 1.0, 1.0]] * 2)
  found = guided_velocity(model, make_conditions(), text, audio)(jnp.zeros(SHAPE), timestep)
  assert found.shape == SHAPE
  np.testing.assert_allclose(found[:, 1, 0, 0, 0], [expected, 2 * expected], rtol=1e-5)
  np.testing.assert_array_equal(found[:, 0], 0.0)


def test_guidance_is_one_call_and_none_is_a_single_batch():
  for strength, batch in ((1.0, 2), (2.0, 6)):
    model = Echo()
    velocity = guided_velocity(model, make_conditions(), strength, strength)
    velocity(jnp.zeros(SHAPE), jnp.ones((2, 3)))
    assert model.calls == [(batch, *SHAPE[1:])]


@pytest.mark.parametrize("solver", sorted(solvers.SOLVERS))
def test_a_key_reproduces_a_sample_bit_for_bit(solver):
  velocity = guided_velocity(Echo(), make_conditions(), 2.0, 3.0)

  @jax.jit
  def run(key: jax.Array) -> jax.Array:
    noise = jax.random.normal(key, SHAPE)
    mask = jnp.array([[True, False, False]] * 2)
    return solvers.sample(
      velocity, noise, jnp.zeros(SHAPE), mask, steps=4, shift=3.0, solver=solver
    )

  first = run(jax.random.key(3))
  np.testing.assert_array_equal(first, run(jax.random.key(3)))
  assert np.abs(first - run(jax.random.key(4))).max() > 0.1
