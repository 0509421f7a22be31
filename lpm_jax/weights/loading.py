"""Models from a weights folder: files that training exported, or imported public checkpoints."""

import functools
import os
from collections.abc import Callable

from flax import nnx

from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.weights import shipped, store


def load_vae(folder: str | os.PathLike = "puppets") -> VideoVAE:
  """The autoencoder of a weights folder: FOLDER/vae.safetensors or the import FOLDER/vae."""
  imported = store.find_import(folder, "vae")
  if not imported:
    return shipped.load_built(shipped.weights_file(folder, "vae"), VAEConfig, VideoVAE)
  config = shipped.config_from_dict(VAEConfig, imported.manifest["config"])
  vae = nnx.eval_shape(lambda: VideoVAE(config, rngs=nnx.Rngs(0)))
  imported.fill(vae)
  return vae


def load_base(folder: str | os.PathLike = "puppets") -> LPM:
  """The Base model of a weights folder (base.safetensors)."""
  return shipped.load_built(shipped.weights_file(folder, "base"), LPMConfig, LPM)


def load_models(folder: str | os.PathLike = "puppets") -> tuple[LPM, VideoVAE]:
  """Base model and autoencoder of a weights folder."""
  return load_base(folder), load_vae(folder)


def initialiser(folder: str | os.PathLike, export: str) -> Callable[[nnx.Module], object]:
  """What fills a fresh module that is exported as `export` from a weights folder.

  The folder has EXPORT.safetensors, which fills all of the module, or an import of a public
  checkpoint, which leaves what is new as it is. Raises WeightsError when it has neither.
  """
  kind = store.KIND_OF.get(export, export)
  imported = store.find_import(folder, kind)
  if imported:
    return imported.fill
  return functools.partial(shipped.load_module, shipped.weights_file(folder, export))
