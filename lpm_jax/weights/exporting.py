"""`lpm weights export`: weights of this project -> a checkpoint that diffusers reads."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from lpm_jax.models.transformer import TransformerConfig
from lpm_jax.models.vae import VAEConfig
from lpm_jax.weights import store
from lpm_jax.weights.importing import ADDITIONS
from lpm_jax.weights.layout import Entry
from lpm_jax.weights.parameters import Parameters, open_parameters
from lpm_jax.weights.public import KINDS, PublicModel, public_model
from lpm_jax.weights.shipped import WeightsError, flat_state, write_tensors

SHARD_BYTES = 1 << 30
DTYPES = {"stored": None, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def export_weights(config: ConfigDict, workdir: str):
  """Writes workdir/KIND: config.json and safetensors as diffusers names them, one shard at a time.

  What only LPM has goes to workdir/KIND/lpm under our names, where `import_weights` finds it again.

  Args:
    config: `kind`, `model` (see `public_model`), `weights` and `average` (see `open_parameters`),
      and `dtype`: "stored" (as it lies), "float32" or "bfloat16".
    workdir: folder that is written.

  Raises:
    WeightsError: a kind that is not exported, weights that do not fit, a folder that is not empty.
  """
  public = public_model(config)
  if public.kind not in _CONFIGS:
    raise WeightsError(f"kind: found {public.kind!r}, exported are {tuple(_CONFIGS)}")
  if config.dtype not in DTYPES:
    raise WeightsError(f"dtype: found {config.dtype!r}, expected one of {tuple(DTYPES)}")
  folder = pathlib.Path(workdir) / public.kind
  if folder.exists() and any(folder.iterdir()):
    raise WeightsError(f"{folder}: not empty: nothing is overwritten")
  read = open_parameters(config.weights, public.kind, average=config.average)
  public = PublicModel(public.kind, public.config)  # with as many input channels as ours
  entries = public.entries("diffusers")
  write_shards(folder, "diffusion_pytorch_model", _tensors(entries, read, config.dtype))
  additions = [entry for entry in _additions(public, entries) if read.has(entry)]
  if additions:
    named = ((store.key(entry), read(entry)) for entry in additions)
    write_shards(folder / ADDITIONS, "model", _cast(named, config.dtype))
  about = _CONFIGS[public.kind](public.config, read)
  (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
  print(
    f"{folder}: {len(entries)} tensors of {about['_class_name']}, {len(additions)} of LPM's own"
  )


def _tensors(
  entries: list[Entry], read: Parameters, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
  named = ((entry.source, entry.exported(read(entry))) for entry in entries)
  return _cast(tqdm(named, total=len(entries), desc="export", unit="tensor"), dtype)


def _cast(named: Iterable[tuple[str, np.ndarray]], dtype: str) -> Iterator[tuple[str, np.ndarray]]:
  wanted = DTYPES[dtype]
  for name, tensor in named:
    yield name, np.ascontiguousarray(tensor if wanted is None else tensor.astype(wanted))


def _additions(public: PublicModel, entries: list[Entry]) -> list[Entry]:
  """One entry for each parameter here that the public model does not know, layer by layer."""
  known = {entry.target for entry in entries} | set(KINDS[public.kind].constants)
  additions = []
  for path, leaf in flat_state(public.abstract()).items():
    if path in known:
      continue
    names = leaf.get_metadata().get("out_sharding") or ()
    layers = range(leaf.shape[0]) if names[:1] == ("layers",) else (None,)
    additions += [Entry("", path, index=index) for index in layers]
  return additions


def write_shards(folder: str | os.PathLike, stem: str, tensors: Iterable[tuple[str, np.ndarray]]):
  """Writes tensors to STEM.safetensors, or to STEM-0000i-of-0000n.safetensors and their index.

  A shard is written when the next tensor would make it larger than SHARD_BYTES; names are given,
  and the index is written, when all are there.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shards: list[list[str]] = []
  pending: dict[str, np.ndarray] = {}
  total = size = 0

  def flush():
    write_tensors(folder / f".{stem}.{len(shards)}.tmp", pending, {"format": "pt"})
    shards.append(list(pending))
    pending.clear()

  for name, tensor in tensors:
    if pending and size + tensor.nbytes > SHARD_BYTES:
      flush()
      size = 0
    pending[name] = tensor
    size, total = size + tensor.nbytes, total + tensor.nbytes
  flush()
  places = {}
  for number, names in enumerate(shards):
    suffix = f"-{number + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
    file = f"{stem}{suffix}.safetensors"
    os.replace(folder / f".{stem}.{number}.tmp", folder / file)
    places |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _transformer_config(config: TransformerConfig, read: Parameters) -> dict:
  del read
  return {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, *config.patch],
    "num_attention_heads": config.heads,
    "attention_head_dim": config.width // config.heads,
    "in_channels": config.channels,
    "out_channels": config.channels,
    "text_dim": config.text_width,
    "freq_dim": 256,
    "ffn_dim": config.hidden,
    "num_layers": config.layers,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
  }


def _vae_config(config: VAEConfig, read: Parameters) -> dict:
  return {
    "_class_name": "AutoencoderKLWan",
    "base_dim": config.base,
    "z_dim": config.latent_channels,
    "dim_mult": list(config.multipliers),
    "num_res_blocks": config.blocks,
    "attn_scales": [],
    "temperal_downsample": list(config.temporal),
    "dropout": 0.0,
    "latents_mean": read(Entry("", "latent_mean")).tolist(),
    "latents_std": read(Entry("", "latent_std")).tolist(),
  }


_CONFIGS = {"transformer": _transformer_config, "vae": _vae_config}
