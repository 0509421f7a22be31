import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.diffusion import flow, solvers

SIGMA = 0.5  # data ~ Normal(MEAN, SIGMA^2): the velocity and the ODE's solution are known
MEAN = 0.3
END = 0.1


def gaussian_velocity(x, t):
  """E[noise - x0 | x_t = x] for Gaussian data."""
  variance = (1 - t) ** 2 * SIGMA**2 + t**2
  residual = x - (1 - t) * MEAN
  return (t * residual - (1 - t) * SIGMA**2 * residual) / variance - MEAN


def solve(solver, steps):
  """Largest error at t = END: the step from there to 0 is of order 1 in both, as in Wan2.1."""
  noise = np.linspace(-2, 2, 9, dtype=np.float32)
  times = np.linspace(1.0, END, steps + 1)
  found = solvers.SOLVERS[solver](gaussian_velocity, jnp.asarray(noise), times)
  exact = (1 - END) * MEAN + np.sqrt((1 - END) ** 2 * SIGMA**2 + END**2) * noise
  return np.abs(np.asarray(found) - exact).max()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("unipc", 2)])
def test_solver_converges_to_the_closed_form_with_its_order(solver, order):
  coarse, fine = solve(solver, 16), solve(solver, 32)
  assert fine < coarse
  assert np.log2(coarse / fine) > order - 0.3


def test_unipc_needs_fewer_steps_than_euler():
  assert solve("unipc", 8) < solve("euler", 32)


def test_unipc_reaches_the_data_from_noise():
  noise = jnp.linspace(-2, 2, 9)
  found = solvers.unipc(gaussian_velocity, noise, solvers.timesteps(64, 2.0))
  np.testing.assert_allclose(found, MEAN + SIGMA * noise, atol=0.01)


def test_known_frames_are_held_clean_at_timestep_zero():
  key = jax.random.key(0)
  noise = jax.random.normal(key, (1, 3, 2, 2, 1))
  known = jnp.full_like(noise, 7.0)
  mask = jnp.array([[True, False, False]])

  def velocity(x, t):  # every unknown frame flows to the known one it can see at timestep 0
    assert t.shape == (1, 3)
    clean = jnp.where(t[0, 0] == 0, x[:, :1], jnp.nan)
    return (x - clean) / jnp.maximum(t, 1e-6)[:, :, None, None, None]

  out = solvers.sample(velocity, noise, known, mask, steps=4, shift=3.0, solver="euler")
  np.testing.assert_allclose(out, 7.0, atol=1e-4)


def test_an_unknown_solver_is_named():
  with pytest.raises(ValueError, match="found 'ddim'"):
    solvers.sample(None, jnp.zeros((1, 1, 1, 1, 1)), None, jnp.zeros((1, 1), bool), steps=1,
                   shift=1.0, solver="ddim")  # fmt: skip


def test_clean_latents_come_back_from_their_velocity():
  clean, noise = jnp.full((2, 3, 1, 1, 1), 2.0), jnp.full((2, 3, 1, 1, 1), -1.0)
  t = jnp.array([[0.0, 0.5, 1.0]] * 2)
  noisy = flow.add_noise(clean, noise, t)
  np.testing.assert_allclose(noisy[0, :, 0, 0, 0], [2.0, 0.5, -1.0])
  np.testing.assert_allclose(flow.velocity_to_clean(noisy, noise - clean, t), clean)


def test_flow_loss_counts_only_weighted_frames():
  velocity = jnp.array([3.0, 1.0]).reshape(1, 2, 1, 1, 1)
  weight = jnp.array([[0.0, 1.0]])
  assert flow.flow_loss(velocity, jnp.zeros_like(velocity), weight) == 1.0


def test_timesteps_are_stratified_and_shifted():
  t = np.sort(flow.sample_timesteps(jax.random.key(0), 64, 1.0))
  assert (np.abs(t - (np.arange(64) + 0.5) / 64) <= 0.5 / 64 + 1e-6).all()
  assert flow.shift_timestep(0.5, 3.0) == 0.75


def test_loss_counts_places_by_how_much_the_batch_moves():
  still = jnp.ones((2, 4, 2, 3, 5))
  moving = still.at[:, ::2, 1, 2].set(3.0)
  place = flow.motion_map(moving)
  np.testing.assert_allclose(place, [[0, 0, 0], [0, 0, 6]], atol=1e-5)
  weight = jnp.ones((2, 4))
  at_lips = jnp.zeros_like(moving).at[:, :, 1, 2].set(1.0)
  assert float(flow.flow_loss(at_lips, 0 * at_lips, weight, place)) == pytest.approx(1.0, rel=1e-5)
  assert float(flow.flow_loss(at_lips, 0 * at_lips, weight)) == pytest.approx(1 / 6, rel=1e-5)


def test_twin_loss_is_one_when_references_are_ignored_whatever_both_get_wrong():
  keys = jax.random.split(jax.random.key(0), 3)
  common, apart, wrong = (jax.random.normal(key, (2, 3, 2, 2, 4)) for key in keys)
  target = jnp.concatenate([common + apart, common - apart])
  weight = jnp.ones((4, 3)).at[:, 0].set(0.0)

  def loss(velocity: jax.Array) -> float:
    return float(flow.twin_loss(velocity, target, weight, floor=0.0))

  both = jnp.concatenate([common + wrong] * 2)
  assert loss(both) == pytest.approx(1.0, rel=1e-5)
  assert loss(target + jnp.concatenate([wrong] * 2)) == pytest.approx(0.0, abs=1e-6)
  assert loss(0.5 * both + 0.5 * target) == pytest.approx(0.25, rel=1e-5)
  small = jnp.concatenate([common + 1e-3 * apart, common - 1e-3 * apart])
  at_floor = flow.twin_loss(small.at[:2].add(0.1), small, weight, floor=0.01)
  assert float(at_floor) == pytest.approx(1.0, rel=1e-2)


def test_twins_have_one_noisy_latent_and_the_velocities_that_lead_to_each():
  keys = jax.random.split(jax.random.key(0), 2)
  latents = jax.random.normal(keys[0], (2, 3, 2, 2, 4))
  noise = jnp.concatenate([jax.random.normal(keys[1], (1, 3, 2, 2, 4))] * 2)
  t = jnp.array([[0.0, 0.6, 1.0]] * 2)
  latents = latents.at[1, 0].set(latents[0, 0])  # the picture, given clean
  own = flow.twin_noise(latents, noise, t)
  noisy = flow.add_noise(latents, own, t)
  np.testing.assert_allclose(noisy[0], noisy[1], atol=1e-5)
  np.testing.assert_allclose(
    noisy[0, 1], 0.4 * latents[:, 1].mean(0) + 0.6 * noise[0, 1], atol=1e-5
  )
  back = flow.velocity_to_clean(noisy, own - latents, t)
  np.testing.assert_allclose(back, latents, atol=1e-5)
