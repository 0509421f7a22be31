"""Training of the video autoencoder on crops of clips and on their reference pictures.

The loss is the mean absolute error, an error of edges and of motion at three sizes in place of a
pretrained perceptual network, and a small divergence that keeps the latents near a unit normal.
Pixels that move within a crop count more: mouth and eyes are a few per cent of a picture, and
most of what a performance says.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from data_pipelines import loader
from data_pipelines.clip import Clip
from data_pipelines.puppets.builder import puppet_source
from lpm_jax.models.pixels import from_pixels, to_pixels
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.models.vae_layers import LinearMap, blocks
from lpm_jax.weights.shipped import config_from_dict

SAMPLE_CLIPS = 8
SHORTCUT_RATE = 0.1
MOVING_VARIANCE = 0.005  # of a block's pixels in time, at which it moves fully
PICTURE_STRIDE = 8  # every eighth frame of a clip counts among its pictures


class AutoencoderTask:
  """The autoencoder on puppet clips.

  Args:
    config: training config with `model` (fields of VAEConfig), `data` (path of the puppet data set,
      validation split or "", statistics_clips, and `moving` and `change`, see
      `set_principal`), `loss` (edges, motion, moving, kl, and noise: the decoder sees latents with
      up to this deviation of noise, as generated ones have), `trainable` ("all", or "decoder":
      latents stay what the encoder starts with) and `stages`: (name, steps, frames of a crop,
      pictures beside it, factor of the learning rate) each.

  Raises ValueError for another `trainable`.
  """

  def __init__(self, config: ConfigDict):
    self.config = config
    self.model_config = config_from_dict(VAEConfig, config.model.to_dict())
    if config.trainable not in ("all", "decoder"):
      raise ValueError(f"trainable: found {config.trainable!r}, expected 'all' or 'decoder'")
    for stage in config.stages:
      self.model_config.latent_frames(stage["frames"])

  def build(self, rngs: nnx.Rngs) -> VideoVAE:
    """The model of `config.model`."""
    return VideoVAE(self.model_config, rngs=rngs)

  def config_dict(self) -> dict:
    """VAEConfig as plain values."""
    return dataclasses.asdict(self.model_config)

  def initialiser(self) -> Callable[[VideoVAE], None] | None:
    """Sets the shortcut of the model, where it has one, to the principal components of the data."""
    return self._principal_shortcut if self.model_config.shortcut else None

  def _principal_shortcut(self, model: VideoVAE):
    source = puppet_source(self.config.data.path, "train")
    count = min(self.config.data.statistics_clips, len(source))
    chosen = np.linspace(0, len(source) - 1, count).astype(int)
    clips = [source[int(i)] for i in chosen]
    pictures = [np.concatenate([c.video[::PICTURE_STRIDE], c.references]) for c in clips]
    set_principal(model.shortcut.first, pictures, 1)
    groups = [clip.video[1:] for clip in clips]
    data, stride = self.config.data, self.model_config.temporal_stride
    set_principal(model.shortcut.rest, groups, stride, data.moving, data.change)

  def learning_rates(self) -> list[tuple[int, tuple]]:
    """Learning-rate factors of each stage; the shortcut, which starts well, follows slowly."""
    return [
      (stage["steps"], ((r"^shortcut/", SHORTCUT_RATE * stage["rate"]), (".", stage["rate"])))
      for stage in self.config.stages
    ]

  def stages(self, seed: int) -> list[tuple[int, grain.MapDataset]]:
    """Training clips without end, as random crops with random reference pictures."""
    return [
      (stage["steps"], loader.endless(self.dataset(seed, index), seed))
      for index, stage in enumerate(self.config.stages)
    ]

  def dataset(self, seed: int, stage: int = -1) -> grain.MapDataset:
    """Every training clip once, in order, cut as in one stage."""
    sizes = self.config.stages[stage]
    return grain.MapDataset.source(puppet_source(self.config.data.path, "train")).random_map(
      lambda clip, rng: crop_example(clip, rng, sizes["frames"], sizes["pictures"]), seed=seed
    )

  def loss(self, model: VideoVAE, batch: dict, key: Array, step: Array) -> tuple[Array, dict]:
    """Reconstruction of crops and, as clips of one frame, of pictures; see `reconstruction_loss`.

    Crop and pictures count by their number of frames.
    """
    del step
    keys = jax.random.split(key)
    video = from_pixels(batch["video"])
    pictures = from_pixels(batch["pictures"]).reshape(-1, 1, *video.shape[2:])
    parts = (
      self._autoencode(model, video, keys[0]),
      self._autoencode(model, pictures, keys[1]),
    )
    frames = (video.shape[1], batch["pictures"].shape[1])
    metrics = jax.tree.map(lambda *x: jnp.average(jnp.stack(x), weights=jnp.array(frames)), *parts)
    metrics["psnr"] = -10 * jnp.log10(metrics.pop("square") / 4)
    weights = self.config.loss
    loss = metrics["absolute"] + weights.edges * metrics["edges"] + weights.kl * metrics["kl"]
    return loss + weights.motion * metrics["motion"], metrics

  def _autoencode(self, model: VideoVAE, video: Array, key: Array) -> dict[str, Array]:
    mean, log_variance = model.encode_moments(video)
    if self.config.trainable == "decoder":
      mean, log_variance = jax.lax.stop_gradient((mean, log_variance))
    log_variance = jnp.clip(log_variance, -20.0, 10.0)
    draws = jax.random.split(key)
    level = jax.random.uniform(draws[0], (len(mean), 1, 1, 1, 1), maxval=self.config.loss.noise)
    noise = jax.random.normal(draws[1], mean.shape)
    result = model.decode_posterior(mean + jnp.hypot(jnp.exp(0.5 * log_variance), level) * noise)
    kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return {"kl": kl, **reconstruction_terms(video, result, self.config.loss.moving)}

  def finish(self, model: VideoVAE):
    """Sets the latent statistics of the model from training clips."""
    source = puppet_source(self.config.data.path, "train")
    count = min(self.config.data.statistics_clips, len(source))
    chosen = np.linspace(0, len(source) - 1, count).astype(int)
    mean, std = latent_statistics(model, (source[int(i)] for i in chosen))
    model.latent_mean[...], model.latent_std[...] = mean, std

  def sample(self, model: VideoVAE, workdir: str, step: int) -> dict[str, float]:
    """Writes validation clips beside their reconstruction; returns PSNR in dB."""
    if not self.config.data.validation:
      return {}
    source = puppet_source(self.config.data.path, self.config.data.validation)
    video = np.stack([source[i].video for i in range(min(SAMPLE_CLIPS, len(source)))])
    result = np.concatenate([reconstruct(model, v[None]) for v in video])
    folder = pathlib.Path(workdir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{step:06d}.png"
    Image.fromarray(_contact_sheet(video, result)).save(temporary)
    os.replace(temporary, folder / f"{step:06d}.png")
    return {f"validation_{name}": value for name, value in psnr(video, result).items()}


def crop_example(clip: Clip, rng: np.random.Generator, frames: int, pictures: int) -> dict:
  """A random crop and random pictures of a clip, mirrored half of the time.

  Returns video uint8 [frames, H, W, 3] and pictures uint8 [pictures, H, W, 3]: references, or
  frames of the clip where it has none.
  """
  start = int(rng.integers(0, len(clip.video) - frames + 1))
  pool = clip.references if len(clip.references) else clip.video
  chosen = rng.choice(len(pool), pictures, replace=len(pool) < pictures)
  turn = slice(None, None, -1 if rng.integers(2) else 1)
  video, pictures_rgb = clip.video[start : start + frames, :, turn], pool[chosen][:, :, turn]
  return {"video": np.ascontiguousarray(video), "pictures": np.ascontiguousarray(pictures_rgb)}


def set_principal(
  linear: LinearMap,
  videos: Iterable[np.ndarray],
  frames: int,
  moving: float = 0.0,
  change: float = 1.0,
):
  """Sets a linear map to the principal components of the blocks of videos uint8 [T, H, W, 3].

  Latents then have mean 0 and deviation 1 and are not correlated. The largest components belong to
  what stands still, and lips are a few of all blocks: they get their share by weight.

  Args:
    linear: the map that is set.
    videos: T is a multiple of `frames`.
    frames: of a block.
    moving: how much blocks that move count, all of them together, beside all blocks together.
    change: how much a pixel's change within its block counts beside its mean.
  """
  pixels, channels = linear.encode.shape
  side = int((pixels / frames / 3) ** 0.5)
  count, total = 0, np.zeros(pixels)
  square, square_moving = np.zeros((2, pixels, pixels))
  for video in videos:
    x = blocks(np.asarray(video, np.float32)[None] / 127.5 - 1.0, frames, side).reshape(-1, pixels)
    motion = x.reshape(len(x), frames, -1).var(1).mean(1)
    share = np.minimum(motion / MOVING_VARIANCE, 1.0)[:, None]
    count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    square_moving += (share * x).T @ x
  centre = total / count
  covariance = square / count - np.outer(centre, centre)
  weighted = covariance / np.trace(covariance)
  if moving:
    weighted = weighted + moving * square_moving / np.trace(square_moving)
  mean = np.kron(np.full((frames, frames), 1 / frames), np.eye(pixels // frames))
  metric = mean + change * (np.eye(pixels) - mean)
  basis = metric @ np.linalg.eigh(metric @ weighted @ metric)[1][:, ::-1][:, :channels]
  variance, turn = np.linalg.eigh(basis.T @ covariance @ basis)
  encode = basis @ (turn / np.sqrt(np.maximum(variance, 1e-8))) @ turn.T
  linear.centre[...] = jnp.asarray(centre, jnp.float32)
  linear.encode[...] = jnp.asarray(encode, jnp.float32)
  decode = np.linalg.lstsq(encode.T @ weighted @ encode, encode.T @ weighted, rcond=None)[0]
  linear.decode[...] = jnp.asarray(decode, jnp.float32)


def reconstruction_terms(video: Array, result: Array, moving: float) -> dict[str, Array]:
  """Mean errors of a reconstruction, both [B, T, H, W, 3] in [-1, 1].

  `absolute` and `edges` (differences of neighbours along height and width, at full, half and
  quarter size) are absolute errors of `opponent` colours under `motion_weight`; `motion` is that of
  the differences of successive frames, not weighted; `square` is the plain squared error of RGB.
  """
  square = jnp.mean((result - video) ** 2)
  error = opponent(result - video)
  weight = motion_weight(video, moving)
  terms = {
    "absolute": jnp.mean(weight * _size(error)),
    "square": square,
    "motion": jnp.mean(_size(jnp.diff(error, axis=1))) if video.shape[1] > 1 else jnp.zeros(()),
    "edges": jnp.zeros(()),
  }
  for size in range(3):
    if size:
      error, weight = halve(error), halve(weight)
    for axis in (2, 3):
      edge = _size(jnp.diff(error, axis=axis))
      near = jax.lax.slice_in_dim(weight, 1, None, axis=axis)
      terms["edges"] += jnp.mean(near * edge) / 3
  return terms


def opponent(rgb: Array) -> Array:
  """Brightness, red-blue and green-magenta differences of colours [..., 3].

  Absolute errors of R, G and B share the sign of the brightness error, which hides hue from the
  gradient; these three axes learn side by side.
  """
  red, green, blue = jnp.moveaxis(rgb, -1, 0)
  axes = ((red + green + blue) / 3, (red - blue) / 2, (2 * green - red - blue) / 2)
  return jnp.stack(axes, axis=-1)


def _size(error: Array) -> Array:
  """Absolute error summed over the colour axes, which stay as one."""
  return jnp.abs(error).sum(-1, keepdims=True)


def motion_weight(video: Array, moving: float) -> Array:
  """Weight of each pixel [B, 1, H, W, 1], of mean 1: up to 1 + `moving` times more where it moves.

  A pixel moves fully when its brightness has a deviation of 0.1 or more over the clip.
  """
  deviation = jnp.std(video.mean(-1, keepdims=True), axis=1, keepdims=True)
  weight = 1.0 + moving * jnp.minimum(deviation / 0.1, 1.0)
  return weight / weight.mean((2, 3), keepdims=True)


def halve(x: Array) -> Array:
  """Means of 2x2 pixels: [B, T, H, W, C] -> [B, T, H/2, W/2, C]."""
  b, t, h, w, c = x.shape
  return x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def reconstruct(model: VideoVAE, video: np.ndarray) -> np.ndarray:
  """uint8 [B, T, H, W, 3] -> the same through the autoencoder."""
  graphdef, state = nnx.split(model)
  return np.asarray(_reconstruct(graphdef, state, video))


@jax.jit(static_argnums=0)
def _reconstruct(graphdef: nnx.GraphDef, state: nnx.State, video: Array) -> Array:
  model = nnx.merge(graphdef, state)
  return to_pixels(model.decode(model.encode(from_pixels(video))))


def psnr(video: np.ndarray, result: np.ndarray) -> dict[str, float]:
  """Peak signal-to-noise ratio in dB of all pixels, and of the tenth of each clip that moves most.

  Shapes: uint8 [B, T, H, W, 3] both.
  """
  square = (video.astype(np.float32) - result) ** 2
  deviation = video.mean(-1).std(1)
  moving = deviation >= np.quantile(deviation, 0.9, axis=(1, 2), keepdims=True)
  per_pixel = square.mean((1, 4))
  return {
    "psnr": float(10 * np.log10(255**2 / square.mean())),
    "psnr_moving": float(10 * np.log10(255**2 / per_pixel[moving].mean())),
  }


def latent_statistics(model: VideoVAE, source: Iterable[Clip]) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation float32 [C] of each latent channel over the videos of clips.

  Every frame counts once, so the picture latents of first frames are in. Raises ValueError for an
  empty source.
  """
  graphdef, state = nnx.split(model)
  count, total, square = 0, 0.0, 0.0
  for clip in tqdm(source, desc="latent statistics", unit="clip"):
    mean = np.asarray(_moments_mean(graphdef, state, clip.video[None]), np.float64)
    mean = mean.reshape(-1, mean.shape[-1])
    count, total, square = count + len(mean), total + mean.sum(0), square + (mean**2).sum(0)
  if not count:
    raise ValueError("latent statistics: found no clip, expected at least one")
  mean = total / count
  deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
  return mean.astype(np.float32), deviation.astype(np.float32)


@jax.jit(static_argnums=0)
def _moments_mean(graphdef: nnx.GraphDef, state: nnx.State, video: Array) -> Array:
  return nnx.merge(graphdef, state).encode_moments(from_pixels(video))[0]


def _contact_sheet(video: np.ndarray, result: np.ndarray, columns: Sequence[float] = (0, 0.5, 1)):
  """uint8 picture: a row per clip, original and reconstruction in turn at some of its frames."""
  frames = [round(c * (video.shape[1] - 1)) for c in columns]
  pairs = [np.concatenate([video[:, t], result[:, t]], axis=2) for t in frames]
  return np.concatenate(list(np.concatenate(pairs, axis=2)), axis=0)
