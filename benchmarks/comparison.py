"""What comparisons with PyTorch share: parameters that hide no difference, the other process."""

import json
import pathlib
import subprocess
import sys

import jax
from flax import nnx


def awakened(model: nnx.Module) -> nnx.Module:
  """The model with noise on every parameter: what starts at zero would hide a difference."""
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [
    leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)
  ]
  return nnx.merge(graphdef, jax.tree.unflatten(treedef, noisy), rest)


class Worker:
  """A script in another Python that answers each line of standard input by one line of JSON.

  Attributes:
    about: its first line, sent unasked.
  """

  def __init__(self, python: str, script: pathlib.Path, *words: str):
    self._process = subprocess.Popen(
      [python, str(script), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.about = self._answer()

  def ask(self, command: str) -> dict:
    """Sends one command, waits for its answer."""
    self._process.stdin.write(command + "\n")
    self._process.stdin.flush()
    return self._answer()

  def close(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      sys.exit("the PyTorch worker ended early; its error is above")
    return json.loads(line)
