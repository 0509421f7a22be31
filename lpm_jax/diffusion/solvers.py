"""Solvers of the probability-flow ODE for flow matching, each one `lax.scan` over its steps."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpm_jax.diffusion.flow import shift_timestep

VelocityFn = Callable[[Array, Array], Array]


def timesteps(steps: int, shift: float) -> np.ndarray:
  """Times from 1 to 0 at which a solver stops: fp64 [steps + 1], shifted."""
  if steps < 1:
    raise ValueError(f"steps: found {steps}, expected at least 1")
  return np.asarray(shift_timestep(np.linspace(1.0, 0.0, steps + 1), shift))


def euler(velocity: VelocityFn, noise: Array, times: np.ndarray) -> Array:
  """First order: x + (t' - t) v(x, t). `velocity` takes x and a scalar t."""

  def step(x: Array, row: Array) -> tuple[Array, None]:
    return x + (row[1] - row[0]) * velocity(x, row[0]), None

  rows = np.stack([times[:-1], times[1:]], axis=1).astype(np.float32)
  return jax.lax.scan(step, noise, rows)[0]


def grid_through(levels: Sequence[float], steps: int, shift: float) -> np.ndarray:
  """`timesteps` that contain every level exactly: fp64 [steps + 1].

  Levels fall from 1 to 0. Each one between takes the place of the nearest time between 1 and 0, so
  the number of steps stays. Raises ValueError where two levels have the same nearest time.
  """
  times = timesteps(steps, shift)
  inner = list(levels[1:-1])
  if inner and steps < 2:
    raise ValueError(f"steps: found {steps}, expected at least {len(levels) - 1} for {levels}")
  places = [1 + int(np.argmin(np.abs(times[1:-1] - level))) for level in inner]
  if len(set(places)) < len(places):
    raise ValueError(f"steps: found {steps}, too few to part the levels {tuple(levels)}")
  times[places] = inner
  return times


def euler_points(
  velocity: VelocityFn,
  noise: Array,
  known: Array,
  known_mask: Array,
  times: np.ndarray,
  levels: Sequence[float],
) -> Array:
  """What `sample` passes on its way, with "euler" on a grid: fp32 [P, B, F, H, W, C] at P levels.

  Args:
    velocity, noise, known, known_mask: see `sample`; known frames are clean in every point.
    times: falls from 1 to 0 and contains every level.
    levels: timesteps of the points, falling from 1 to 0.
  """
  if not set(levels) <= set(times):
    missing = sorted(set(levels) - set(times))
    raise ValueError(f"levels: found {missing}, expected times of the grid")
  held, masked = _held(velocity, known, known_mask)
  # The point that a step is on the way to is overwritten until the step that ends on its level.
  ends = np.searchsorted(-np.asarray(levels), -times[1:])

  def step(carry: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[tuple, None]:
    x, points = carry
    (now, later), end = row
    x = x + (later - now) * masked(x, now)
    return (x, jax.lax.dynamic_update_index_in_dim(points, x, end, 0)), None

  rows = np.stack([times[:-1], times[1:]], axis=1).astype(np.float32), ends.astype(np.int32)
  points = jnp.zeros((len(levels), *noise.shape), noise.dtype).at[0].set(noise)
  (_, points), _ = jax.lax.scan(step, (noise, points), rows)
  return jnp.where(held, known, points)


def unipc(velocity: VelocityFn, noise: Array, times: np.ndarray) -> Array:
  """UniPC (arXiv 2302.04867): predictor of order 2, corrector of order 3, one evaluation a step.

  In half log-SNR lambda = log((1 - t) / t) the ODE of the clean prediction m is integrated exactly
  up to m, so
    x' = (t' / t) x + (1 - t') sum_j w_j m_j,  sum_j w_j tau_j^k = int_0^h exp(tau - h) tau^k dtau,
  with tau_j the places of known predictions: the present and the one before for the predictor, and
  the new one too for the corrector, which needs no further evaluation. First and last prediction
  are of order 1.
  """
  table = _unipc_table(times)

  def step(carry: tuple, row: dict[str, Array]) -> tuple[tuple, None]:
    x, before, last, older = carry
    new = x - row["t"] * velocity(x, row["t"])
    w = row["correct"]
    corrected = row["decay"] * before + w[0] * older + w[1] * last + w[2] * new
    x = jnp.where(row["first"], x, corrected)
    w = row["predict"]
    predicted = row["next_decay"] * x + w[0] * last + w[1] * new
    return (predicted, x, new, last), None

  return jax.lax.scan(step, (noise, noise, noise, noise), table)[0][0]


def _unipc_table(times: np.ndarray) -> dict[str, np.ndarray]:
  inner = np.clip(times, 1e-4, 1.0 - 1e-4)
  lambdas = np.log((1.0 - inner) / inner)
  count = len(times) - 1
  correct, predict = np.zeros((count, 3)), np.zeros((count, 2))
  for i in range(count):
    if i:
      known = max(0, i - 2)
      correct[i, known - i + 2 :] = _weights(lambdas[i - 1], lambdas[known : i + 1], lambdas[i])
      correct[i] *= 1.0 - times[i]
    order1 = i in (0, count - 1)
    nodes = lambdas[i : i + 1] if order1 else lambdas[i - 1 : i + 1]
    predict[i, -len(nodes) :] = _weights(lambdas[i], nodes, lambdas[i + 1])
    predict[i] *= 1.0 - times[i + 1]
  if times[-1] == 0:
    predict[-1] = 0.0, 1.0  # at t = 0 the state is the clean prediction itself
  table = {
    "t": times[:-1],
    "decay": np.concatenate([[0.0], times[1:-1] / times[:-2]]),
    "next_decay": times[1:] / times[:-1],
    "correct": correct,
    "predict": predict,
  }
  first = np.arange(count) == 0
  return {name: np.asarray(x, np.float32) for name, x in table.items()} | {"first": first}


def _weights(start: float, nodes: np.ndarray, end: float) -> np.ndarray:
  """Weights of predictions at `nodes`: exact integral of exp(lambda - end) over start .. end."""
  h, tau = end - start, nodes - start
  moments = [-np.expm1(-h)]
  for k in range(1, len(nodes)):
    moments.append(h**k - k * moments[-1])
  return np.linalg.solve(np.vander(tau, increasing=True).T, np.asarray(moments))


SOLVERS = {"euler": euler, "unipc": unipc}


def sample(
  velocity: VelocityFn,
  noise: Array,
  known: Array,
  known_mask: Array,
  *,
  steps: int,
  shift: float,
  solver: str = "unipc",
) -> Array:
  """Latents from noise, with some frames given.

  Args:
    velocity: model velocity of (latents [B, F, H, W, C], timestep [B, F]).
    noise: standard normal [B, F, H, W, C].
    known: clean latents [B, F, H, W, C], read where known_mask is True.
    known_mask: bool [B, F]; these frames are held clean, at timestep 0, in every evaluation.
    steps: evaluations of the model (NFE, guidance apart).
    shift: timestep shift.
    solver: a name in SOLVERS.

  Returns:
    fp32 [B, F, H, W, C].
  """
  if solver not in SOLVERS:
    raise ValueError(f"solver: found {solver!r}, expected one of {sorted(SOLVERS)}")
  held, masked = _held(velocity, known, known_mask)
  out = SOLVERS[solver](masked, noise, timesteps(steps, shift))
  return jnp.where(held, known, out)


def _held(velocity: VelocityFn, known: Array, known_mask: Array) -> tuple[Array, VelocityFn]:
  """Where frames are given, bool [B, F, 1, 1, 1], and the velocity at one timestep of the rest."""
  held = known_mask[:, :, None, None, None]

  def masked(x: Array, t: Array) -> Array:
    return velocity(jnp.where(held, known, x), jnp.where(known_mask, 0.0, t))

  return held, masked
