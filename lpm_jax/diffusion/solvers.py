"""Solvers of the probability-flow ODE for flow matching, each one `lax.scan` over its steps."""

from collections.abc import Callable

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
  held = known_mask[:, :, None, None, None]

  def masked(x: Array, t: Array) -> Array:
    return velocity(jnp.where(held, known, x), jnp.where(known_mask, 0.0, t))

  out = SOLVERS[solver](masked, noise, timesteps(steps, shift))
  return jnp.where(held, known, out)
