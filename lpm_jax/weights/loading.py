"""Models from a weights folder: files that training exported, or imported public checkpoints."""

import functools
import os
from collections.abc import Callable

from flax import nnx

from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.weights import shipped, store
from lpm_jax.weights.public import KINDS, PublicModel


def load_vae(folder: str | os.PathLike = "puppets") -> VideoVAE:
  """The autoencoder of a weights folder: FOLDER/vae.safetensors or the import FOLDER/vae."""
  imported = store.find_import(folder, "vae")
  if imported is None:
    return shipped.load_built(shipped.weights_file(folder, "vae"), VAEConfig, VideoVAE)
  return _from_import(imported)


def load_encoder(folder: str | os.PathLike, kind: str) -> nnx.Module:
  """A frozen encoder, "umt5" or "wav2vec2", from its import; WeightsError when there is none."""
  imported = store.find_import(folder, kind)
  if not imported:
    raise shipped.WeightsError(f"{folder}: no {kind} here: run `lpm weights import` first")
  return _from_import(imported)


def _from_import(imported: store.ImportedWeights) -> nnx.Module:
  kind = imported.manifest["kind"]
  config = shipped.config_from_dict(KINDS[kind].config, imported.manifest["config"])
  module = PublicModel(kind, config).abstract()
  imported.fill(module)
  return module


def load_base(folder: str | os.PathLike = "puppets", name: str = "base") -> LPM:
  """The Base model of a weights folder (base.safetensors), or another LPM in NAME.safetensors."""
  return shipped.load_built(shipped.weights_file(folder, name), LPMConfig, LPM)


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
