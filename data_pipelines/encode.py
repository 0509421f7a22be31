"""Clips -> encoded clips: VAE latents computed once, so that training never pays for pixels.

Sharded over processes, resumable (a shard that exists whole is skipped), written atomically.
"""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from data_pipelines import features, records
from data_pipelines.clip import Clip, EncodedClip
from data_pipelines.features import FrozenEncoders
from data_pipelines.puppets import builder
from lpm_jax.models.pixels import from_pixels
from lpm_jax.models.vae import VideoVAE
from lpm_jax.weights import loading

MAX_REFERENCES = 16


def make_encoder(vae: VideoVAE) -> Callable[[np.ndarray], np.ndarray]:
  """uint8 [B, T, H, W, 3] -> latents float32 [B, F, h, w, C], compiled once per shape."""
  graphdef, state = nnx.split(vae)

  @jax.jit
  def encode_video(state: nnx.State, video: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state).encode(from_pixels(video))

  return lambda video: np.asarray(encode_video(state, video), np.float32)


def encode_clip(
  encoder: Callable[[np.ndarray], np.ndarray], clip: Clip, frozen: FrozenEncoders | None = None
) -> EncodedClip:
  """One clip with latents in place of pixels; references are encoded as single pictures.

  The features of frozen encoders are added where these are given. The batch of references is padded
  to one size, so that any number of them compiles once.
  """
  pictures = np.zeros((MAX_REFERENCES, 1, *clip.references.shape[1:]), np.uint8)
  count = len(clip.references)
  if count > MAX_REFERENCES:
    raise ValueError(f"clip {clip.clip_id!r}: {count} references, at most {MAX_REFERENCES}")
  pictures[:count, 0] = clip.references
  shared = {
    field.name: getattr(clip, field.name)
    for field in dataclasses.fields(clip)
    if field.name not in ("video", "references")
  }
  return EncodedClip(
    latents=encoder(clip.video[None])[0],
    references=encoder(pictures)[:count, 0],
    **shared,
    **(frozen(clip) if frozen else {}),
  )


def _encoded(
  encoder: Callable, frozen: FrozenEncoders | None, clips: Sequence[Clip], indices: range
) -> Iterator[EncodedClip]:
  """Encodes in order while the next clip is read in the background."""
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    upcoming = reader.submit(clips.__getitem__, indices[0])
    for index in indices:
      clip = upcoming.result()
      if index + 1 in indices:
        upcoming = reader.submit(clips.__getitem__, index + 1)
      yield encode_clip(encoder, clip, frozen)


def encode(config, workdir: str):
  """Encodes every split of `config.splits` in `config.data_dir` into `workdir`.

  A split is a folder of clip records, or one of the puppet data set. `config.frozen` names the
  frozen encoders whose features are stored too (see `features.load_encoders`); with `config.half`
  latents are stored in bfloat16. Writes workdir/SPLIT/NNNNN-of-NNNNN.array_record,
  `config.clips_per_shard` clips each; process p of n writes the shards p, p + n, ...
  """
  encoder = make_encoder(loading.load_vae(config.weights))
  frozen = features.load_encoders(config.frozen)
  for split in config.splits:
    clips = _clips(config.data_dir, split)
    starts = range(0, len(clips), config.clips_per_shard)
    mine = range(jax.process_index(), len(starts), jax.process_count())
    for shard in tqdm(mine, desc=f"encode {split}", unit="shard"):
      path = pathlib.Path(workdir) / split / f"{shard:05d}-of-{len(starts):05d}.array_record"
      if path.exists():
        continue
      stop = min(starts[shard] + config.clips_per_shard, len(clips))
      encoded = _encoded(encoder, frozen, clips, range(starts[shard], stop))
      records.write_records(path, encoded, half=config.half)


def _clips(folder: str, split: str) -> Sequence[Clip]:
  if list((pathlib.Path(folder) / split).glob("*.array_record")):
    return records.RecordSource(pathlib.Path(folder) / split)
  return builder.puppet_source(folder, split)
