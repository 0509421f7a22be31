"""A session on disk: what it needs to go on after the process was killed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from lpm_jax.media.files import Path, written_whole
from lpm_jax.streaming.session import Session


def save_session(path: Path, session: Session):
  """Writes the session between two chunks, whole or not at all.

  Sound and chunks that wait are not part of it: raises ValueError while there are any.
  """
  if session.ready or any(session.waiting_seconds().values()):
    raise ValueError(f"{path}: chunks or sound still wait: pull and advance before saving")
  facts, performance = session.memory()
  tensors = {f"{i:05d}": _numbers(leaf) for i, leaf in enumerate(jax.tree.leaves(performance))}
  with written_whole(path) as temporary:
    save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def load_session(path: Path, session: Session):
  """Takes up a saved session in a new one of the same performer, picture and references.

  Raises ValueError for a file that is damaged or of another model.
  """
  try:
    with safe_open(path, framework="flax") as file:
      facts = json.loads(file.metadata()["facts"])
      found = [file.get_tensor(name) for name in sorted(file.keys())]
  except (OSError, SafetensorError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: no saved session: {error}") from error
  _, performance = session.memory()
  leaves, treedef = jax.tree.flatten(performance)
  shapes = [[(x.shape, x.dtype) for x in side] for side in (found, map(_numbers, leaves))]
  if shapes[0] != shapes[1]:
    raise ValueError(f"{path}: found the session of another model or picture size")
  filled = [_like(leaf, value) for leaf, value in zip(leaves, found, strict=True)]
  session.remember(facts, jax.tree.unflatten(treedef, filled))


def _numbers(leaf: Array) -> Array:
  """The array, or the data of a random key."""
  is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(leaf) if is_key else leaf


def _like(leaf: Array, value: Array) -> Array:
  is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return jax.random.wrap_key_data(np.asarray(value)) if is_key else value
