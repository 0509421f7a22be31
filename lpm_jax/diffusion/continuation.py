"""Videos of any length: windows that continue from the tail latents of the window before.

LPM 1.0 generates long videos chunk by chunk in latent space, each chunk starting from the tail of
the last one, the overlap blended linearly. Here a window starts with `overlap` latents known clean
(timestep 0), as the temporal-extension stage trains it; `blend` further latents are made by both
windows and cross-faded.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class Window:
  """One run of the sampler, in latent frames of the whole video.

  Attributes:
    start: first latent frame.
    length: latent frames of the window; the last window may reach over the end of the video.
    known: leading latents that are given clean: the picture in the first window, a tail later.
    blend: latents after the known ones that the window before has made too.
  """

  start: int
  length: int
  known: int
  blend: int

  @property
  def stop(self) -> int:
    """One past the last latent frame."""
    return self.start + self.length

  @property
  def fresh(self) -> int:
    """First latent frame that no earlier window has made."""
    return self.start + self.known + self.blend


SampleWindow = Callable[[Window, Array, Array], Array]


def plan_windows(total: int, window: int, overlap: int, blend: int = 0) -> tuple[Window, ...]:
  """The fewest windows of one length, at most `window`, that cover `total` latent frames.

  One length, so that the sampler compiles once; as short as it may be, so that the last window
  makes few latents over the end. Raises ValueError for windows without room for new latents.
  """
  if total < 1:
    raise ValueError(f"total: found {total} latent frames, expected at least 1")
  shared = overlap + blend
  if overlap < 1 or blend < 0 or shared >= window:
    raise ValueError(
      f"window: found {window} latents with an overlap of {overlap} and a blend of {blend}, "
      "expected overlap >= 1, blend >= 0 and new latents behind both"
    )
  count = 1 + max(0, math.ceil((total - window) / (window - shared)))
  length = math.ceil((total + (count - 1) * shared) / count)
  return (
    Window(0, length, known=1, blend=0),
    *(Window(i * (length - shared), length, overlap, blend) for i in range(1, count)),
  )


def covered(windows: Sequence[Window]) -> int:
  """Latent frames that the windows make in all, at least as many as were asked for."""
  return windows[-1].stop


def blend_weights(blend: int) -> Array:
  """Share of the later window in each blended latent, fp32 [blend], rising linearly inside (0, 1).

  The earlier window has the rest, so the two always sum to one.
  """
  return (jnp.arange(blend, dtype=jnp.float32) + 1.0) / (blend + 1.0)


def join_window(tail: Array, made: Array, window: Window) -> Array:
  """Latents of a window [B, length, h, w, C] joined to the tail [B, known + blend, h, w, C].

  Known latents are the tail's, blended ones are cross-faded, the others stay.
  """
  known, shared = window.known, window.known + window.blend
  later = blend_weights(window.blend)[:, None, None, None]
  faded = (1.0 - later) * tail[:, known:] + later * made[:, known:shared]
  return jnp.concatenate([tail[:, :known], faded, made[:, shared:]], axis=1)


def continue_video(
  sample_window: SampleWindow, first: Array, windows: Sequence[Window], key: Array
) -> Iterator[Array]:
  """Latents of the whole video in order, [B, n, h, w, C] as soon as each window has settled them.

  Joined they are [B, covered(windows), h, w, C].

  Args:
    sample_window: (window, known latents [B, window.known, h, w, C], key) -> latents
      [B, window.length, h, w, C]; it crops the conditions to the window itself.
    first: clean latent of the first picture [B, 1, h, w, C].
    windows: of `plan_windows`.
    key: one random key, or keys [B]; window i gets fold_in(key, i) of each.
  """
  tail = first
  for i, window in enumerate(windows):
    made = sample_window(window, tail[:, : window.known], _fold(key, i))
    made = join_window(tail, made, window)
    settled = windows[i + 1].start - window.start if i + 1 < len(windows) else window.length
    tail = made[:, settled:]
    yield made[:, :settled]


def _fold(key: Array, data: int) -> Array:
  if not key.ndim:
    return jax.random.fold_in(key, data)
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, data)
