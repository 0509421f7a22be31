"""`lpm weights pack`: weights with eight bits a number, for shipping."""

import os
import pathlib

import numpy as np
from ml_collections import ConfigDict
from safetensors import safe_open

from lpm_jax.weights import shipped

MATRICES = ("kernel", "table")  # what is worth it; biases, norms and modulations stay as they are


def pack_weights(config: ConfigDict, workdir: str | os.PathLike):
  """Writes workdir/NAME.safetensors for every name of `config.files`, and prints sizes and errors.

  Args:
    config: `files`, NAME -> FOLDER with NAME.safetensors.
    workdir: folder that is written; files there are replaced.

  Raises WeightsError for a file that is missing, is none of this project or is packed already.
  """
  for name, folder in sorted(config.files.items()):
    path = shipped.weights_file(folder, name)
    about = shipped.read_config(path)
    packed, worst = {}, 0.0
    with safe_open(path, framework="numpy") as file:
      for key in file.keys():
        tensor = file.get_tensor(key)
        if tensor.dtype == np.int8:
          raise shipped.WeightsError(f"{path}: {key}: found eight bits, expected floating point")
        if key.rsplit("/", 1)[-1] not in MATRICES:
          packed[key] = tensor
          continue
        packed[key], packed[key + shipped.SCALE] = of_eight_bits(tensor)
        apart = packed[key] * packed[key + shipped.SCALE].astype(np.float32) - tensor
        worst = max(worst, float(np.sqrt(np.square(apart).mean() / np.square(tensor).mean())))
    target = pathlib.Path(workdir) / f"{name}.safetensors"
    shipped.save_tensors(target, packed, about)
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, largest relative error of a matrix {worst:.2%}")


def of_eight_bits(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Integers int8 of the tensor's shape and their scales fp32, one for every output of a matrix.

  A matrix is [..., inputs, outputs]; tensor = integers * scales, apart from half a scale.
  """
  tensor = tensor.astype(np.float32)
  scale = np.abs(tensor).max(axis=-2, keepdims=True) / 127
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  return np.rint(tensor / scale).astype(np.int8), scale
