"""Distribution matching: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.distillation import matching

SHAPE = (3, 4, 2, 2, 5)


def arrays(*seeds: int) -> list[jax.Array]:
  return [jax.random.normal(jax.random.key(seed), SHAPE) for seed in seeds]


def weight(known: int = 1) -> jax.Array:
  return jnp.broadcast_to((jnp.arange(SHAPE[1]) >= known).astype(jnp.float32), SHAPE[:2])


def test_nothing_is_to_be_done_where_fake_equals_real():
  made, real = arrays(0, 1)
  assert not np.any(matching.direction(made, real, real, weight()))


def test_the_direction_is_normalised_by_the_distance_to_the_teacher_clip_by_clip():
  made, fake, real = arrays(0, 1, 2)
  found = matching.direction(made, fake, real, weight())
  for i in range(SHAPE[0]):
    scale = np.abs(made[i, 1:] - real[i, 1:]).mean()
    np.testing.assert_allclose(found[i, 1:], (fake - real)[i, 1:] / scale, rtol=1e-5)
  assert not np.any(found[:, 0])  # the picture was given
  larger = matching.direction(*(10 * x for x in (made, fake, real)), weight())
  np.testing.assert_allclose(larger, found, rtol=1e-5)


def test_what_is_not_finite_moves_nothing():
  made, fake, real = arrays(0, 1, 2)
  found = matching.direction(made, fake.at[0, 2].set(jnp.nan), real, weight())
  assert np.isfinite(found).all() and not np.any(found[0, 2])
  same = matching.direction(made, fake, made, weight())  # the teacher has nothing to say: 1 / 0
  assert not np.any(same)


def test_the_gradient_of_the_loss_is_the_direction():
  made, towards = arrays(0, 1)
  towards = towards * weight()[:, :, None, None, None]
  gradient = jax.grad(matching.matching_loss)(made, towards, weight())
  count = float(weight().sum()) * np.prod(SHAPE[2:])
  np.testing.assert_allclose(gradient, towards / count, rtol=1e-5, atol=1e-9)


def test_a_student_that_follows_ends_where_the_teacher_is():
  """One Gaussian each: fake and real scores known, the student is a mean that learns.

  Clean predictions of N(m, 1) noised to t: m + (1 - t) / ((1 - t)^2 + t^2) (y - (1 - t) m).
  """

  def predicted(noisy, t, mean):
    keep = 1.0 - t
    return mean + keep / (keep**2 + t**2) * (noisy - keep * mean)

  def step(mean, key):
    a, b, c = jax.random.split(key, 3)
    t = matching.draw_timesteps(a, 64, 1.0)[:, None, None, None, None]
    made = mean + jax.random.normal(b, (64, 1, 1, 1, 1))
    noisy = (1.0 - t) * made + t * jax.random.normal(c, made.shape)
    count = jnp.ones((64, 1))

    def loss(mean):
      latents = made - jax.lax.stop_gradient(mean) + mean
      fake, real = predicted(noisy, t, jax.lax.stop_gradient(mean)), predicted(noisy, t, 2.0)
      towards = matching.direction(made, fake, real, count)
      return matching.matching_loss(latents, towards, count)

    return mean - 0.2 * jax.grad(loss)(mean), None

  mean, _ = jax.lax.scan(step, 0.0, jax.random.split(jax.random.key(0), 200))
  np.testing.assert_allclose(mean, 2.0, atol=0.02)


def test_timesteps_are_clamped():
  drawn = np.concatenate([matching.draw_timesteps(jax.random.key(i), 100, 5.0) for i in range(20)])
  assert drawn.min() >= 0.02 and drawn.max() == np.float32(0.98)
  np.testing.assert_allclose(np.median(drawn), 5 / 6, atol=0.01)  # 1/2, shifted
