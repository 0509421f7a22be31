"""Slots and positions of an endless stream's cache, told by chunks that carry their number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.cache import KVCache
from lpm_jax.streaming.cache import StreamCache

REFERENCES = 2


def numbered(chunk: int, frames: int) -> KVCache:
  """A chunk whose keys are its number."""
  key = jnp.full((1, 2, 1, 1, frames, 1, 2), float(chunk))
  return KVCache(key, -key, jnp.zeros((1, frames), jnp.int32), jnp.ones((1, frames), bool))


@pytest.mark.parametrize(("frames", "sink", "window"), [(1, 3, 2), (2, 1, 1), (3, 2, 4), (2, 0, 2)])
def test_a_chunk_sees_sink_and_window_in_order_at_fixed_places(frames, sink, window):
  causal = ChunkCausal(frames, sink, window)
  pinned = numbered(-7, REFERENCES)
  cache = StreamCache.empty(pinned, causal)
  push = jax.jit(StreamCache.pushed)
  shapes = [x.shape for x in jax.tree.leaves(cache)]
  for n in range(40):
    always, view = cache.view()
    assert always.key.shape[4] == REFERENCES and (always.key == -7).all()
    numbers = np.asarray(view.key[0, 0, 0, 0, :, 0, 0]).astype(int)
    time, seen = np.asarray(view.time[0]), np.asarray(view.seen[0])
    order = np.argsort(time[seen], kind="stable")
    expected = [c for c in range(n) if c < sink or c >= n - window]
    np.testing.assert_array_equal(numbers[seen][order], np.repeat(expected, frames))
    np.testing.assert_array_equal(time[seen][order], 1 + np.arange(len(expected) * frames))
    assert int(cache.start()) == 1 + len(expected) * frames
    np.testing.assert_array_equal(view.value, -view.key)
    cache = push(cache, numbered(n, frames))
  assert [x.shape for x in jax.tree.leaves(cache)] == shapes


def test_a_stream_of_weeks_keeps_its_places():
  cache = StreamCache.empty(numbered(-7, 1), ChunkCausal(1, 3, 2)).replace(
    chunks=jnp.int32(2**31 - 9)
  )
  for _ in range(4):
    time = np.asarray(cache.view()[1].time[0])
    assert sorted(time) == [1, 2, 3, 4, 5]
    cache = cache.pushed(numbered(0, 1))
