"""Models from a weights folder: files that training exported, or imported public checkpoints."""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.weights import shipped, store
from lpm_jax.weights.public import KINDS, PublicModel

BACKBONES = ("backbone", "base")  # what a stream runs on, in order of preference
SHARED_BY_REFINER = (
  "channels",
  "text_width",
  "audio_width",
  "speak_window",
  "listen_window",
  "offsets",
)


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


class StreamModels(NamedTuple):
  """What a stream is made of; without a refiner the backbone refines, as in undistilled ones."""

  lpm: LPM
  vae: VideoVAE
  refiner: VideoTransformer | None


def load_stream(folder: str | os.PathLike = "puppets", vae: str | os.PathLike = "") -> StreamModels:
  """Backbone with its encoders, autoencoder and refiner of a weights folder.

  Args:
    folder: backbone.safetensors, an LPM, or else base.safetensors, which streams undistilled;
      refiner.safetensors, an LPM whose transformer alone is used, where there is one.
    vae: folder of the autoencoder where `folder` has none of its own.

  Raises WeightsError for a folder with neither backbone nor base, for one without an autoencoder
  when none is named, and for a refiner that takes other inputs than the backbone.
  """
  found = [name for name in BACKBONES if shipped.has_weights(folder, name)]
  if not found:
    names = " nor ".join(f"{name}.safetensors" for name in BACKBONES)
    raise shipped.WeightsError(f"{folder}: no weights of a stream: found neither {names}")
  lpm, refiner = load_base(folder, found[0]), None
  if shipped.has_weights(folder, "refiner"):
    refiner = load_base(folder, "refiner").transformer
    _check_refiner(folder, lpm.transformer, refiner)
  own = shipped.has_weights(folder, "vae") or store.find_import(folder, "vae")
  return StreamModels(lpm, load_vae(folder if own or not vae else vae), refiner)


def _check_refiner(
  folder: str | os.PathLike, backbone: VideoTransformer, refiner: VideoTransformer
):
  """Both transformers of a stream see the same latents, conditions and references."""
  for name in SHARED_BY_REFINER:
    found, expected = (getattr(model.config, name) for model in (refiner, backbone))
    if found != expected:
      path = shipped.weights_file(folder, "refiner")
      raise shipped.WeightsError(
        f"{path}: {name}: found {found}, expected the backbone's {expected}"
      )


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
