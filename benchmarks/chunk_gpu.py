"""One chunk of one second at 480p on one GPU, stage by stage, beside what others report.

Backbone, refiner and decoder at the width of Wan2.1 1.3B and at that of the 17B model, bf16, random
weights, full caches (main picture, four references, five chunks: 9,360 tokens look at 63,960). Each
stage has the GPU to itself, as it would in a pipeline. Where not all blocks fit, times of the
transformer are scaled to all of them, and marked.
  python -m benchmarks.chunk_gpu                    # a GPU with 80 GB or more
  python -m benchmarks.chunk_gpu --tiny             # runs anywhere, says nothing
Needs attention that does not write its weights down (`--attention`): 9,360 x 63,960 x 40 numbers
are 96 GB. The temporary memory of a pass is printed.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.cache import KVCache
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.streaming import sampler
from lpm_jax.streaming.cache import StreamCache

REFERENCES, FPS = 4, 24
# Frames per second as their makers report them; docs/streaming.md names the sources.
PEERS = (
  ("LPM 1.0 online", "17B", "480p", "0.70 s backbone, 0.70 s refiner, 0.18 s decoder, pipelined"),
  ("LiveAvatar", "14B", "720x400", "45.2 on 5 H800 in FP8, 20.9 before kernels; 3.7 on one"),
  ("FlashTalk", "14B", "448x768", "32 on 8 H800"),
  ("SoulX-LiveAct", "14B", "720x416", "20 on 2 H100"),
  ("Krea realtime", "14B", "480p", "11 on one B200"),
  ("Avatar-Forever", "22B", "768x512", "27.2 on one H100"),
  ("LongLive", "1.3B", "480p", "20.7 on one H100"),
  ("Rolling Forcing", "1.3B", "480p", "16 on one GPU"),
  ("LiveTalk", "1.3B", "512x512", "24.8 on one GPU"),
)


@dataclasses.dataclass(frozen=True)
class Size:
  """What is measured: a transformer, an autoencoder, a picture."""

  name: str
  transformer: TransformerConfig
  vae: VAEConfig
  height: int = 480
  width: int = 832

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of latents."""
    return self.height // self.vae.spatial_stride, self.width // self.vae.spatial_stride


def sizes(tiny: bool, attention: str) -> list[Size]:
  if tiny:
    small = TransformerConfig(width=32, heads=2, layers=4, hidden=64, dtype="bfloat16")
    vae = VAEConfig(base=8, multipliers=(1, 1, 1, 1), blocks=1, dtype="bfloat16")
    return [Size("tiny", dataclasses.replace(small, attention=attention), vae, 32, 64)]
  vae = VAEConfig(dtype="bfloat16")
  wide = dataclasses.replace(TransformerConfig.lpm_17b(), attention=attention)
  narrow = dataclasses.replace(wide, width=1536, heads=12, layers=30, hidden=8960, audio_width=1536)
  return [Size("1.3B width", narrow, vae), Size("17B width", wide, vae)]


def random_like(shapes, key: Array):
  """bf16 numbers in place of shapes; small, but no zeros, which would run cooler and faster."""
  leaves, treedef = jax.tree.flatten(shapes)
  draw = jax.jit(
    lambda key, shape: (0.02 * jax.random.normal(key, shape)).astype(jnp.bfloat16),
    static_argnums=1,
  )
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [draw(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def full_cache(config: TransformerConfig, causal: ChunkCausal, tokens: int) -> StreamCache:
  """The cache of a stream that is older than its window."""

  def keys(seed: int, grids: int) -> Array:
    head = config.width // config.heads
    shape = (config.layers // 2, 2, 1, config.heads, grids, tokens, head)
    return random_like(jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.random.key(seed))

  slots = 1 + REFERENCES
  where = jnp.arange(slots)[None] * 100, jnp.ones((1, slots), bool)
  pinned = KVCache(keys(0, slots), keys(1, slots), *where)
  grids = (causal.sink + causal.window) * causal.frames
  return StreamCache(pinned, keys(2, grids), keys(3, grids), jnp.int32(100), causal)


def make_conditions(size: Size, frames: int) -> Conditions:
  config = size.transformer
  shape = (1, config.listen_window[0] + frames, 4, config.audio_width)
  track, none = jnp.full(shape, 0.1, jnp.bfloat16), jnp.zeros((1, 0), jnp.int32)
  text = jnp.full((1, 512, config.text_width), 0.1, jnp.bfloat16)
  nothing = jnp.zeros((1, 0, *size.grid, config.channels))
  return Conditions(text, track, track, nothing, none, none)


def median_seconds(call: Callable, *args, turns: int) -> tuple[float, int]:
  """Median time of a compiled call, and bytes of its temporary memory."""
  compiled = jax.jit(call).lower(*args).compile()
  memory = compiled.memory_analysis()
  jax.block_until_ready(compiled(*args))
  times = []
  for _ in range(turns):
    begun = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    times.append(time.perf_counter() - begun)
  return statistics.median(times), memory.temp_size_in_bytes if memory else 0


def transformer_times(size: Size, settings: sampler.StreamSettings, turns: int) -> dict:
  """Seconds of one evaluation, of the backbone's and the refiner's part of a chunk."""
  config, frames = size.transformer, settings.causal.frames
  graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))
  weights = random_like(shapes, jax.random.key(0))
  rows, columns = size.grid
  cache = full_cache(config, settings.causal, rows * columns // 4)
  conditions, key = make_conditions(size, frames), jax.random.key(1)
  latents = jax.random.normal(key, (1, frames, rows, columns, config.channels))

  def evaluation(weights, cache, conditions, latents):
    model = nnx.merge(graphdef, weights)
    past = [model.turned(view, rows, columns) for view in cache.view()]
    t = jnp.full(latents.shape[:2], 0.5)
    return model.extend(latents, t, conditions, past, cache.start())

  def backbone(weights, cache, conditions, key):
    model = nnx.merge(graphdef, weights)
    return sampler.coarse_latents(model, cache, settings, conditions, key, latents.shape)

  def refiner(weights, cache, conditions, key, latents):
    model = nnx.merge(graphdef, weights)
    return sampler.refined_latents(model, cache, settings, conditions, key, latents)

  one, temporary = median_seconds(evaluation, weights, cache, conditions, latents, turns=turns)
  first, _ = median_seconds(backbone, weights, cache, conditions, key, turns=turns)
  second, _ = median_seconds(refiner, weights, cache, conditions, key, latents, turns=turns)
  return {
    "evaluation": one,
    "backbone": first,
    "refiner": second,
    "temporary": temporary,
    "flops": evaluation_flops(size, shapes, settings),
  }


def evaluation_flops(size: Size, shapes, settings: sampler.StreamSettings) -> float:
  """Of one pass: 2 for each weight of a block and token, 4 for each pair of tokens and width."""
  causal, config = settings.causal, size.transformer
  tokens = size.grid[0] * size.grid[1] // 4
  own = causal.frames * tokens
  seen = own + (1 + REFERENCES + (causal.sink + causal.window) * causal.frames) * tokens
  weights = sum(leaf.size for leaf in jax.tree.leaves(shapes["pairs"]))
  return 2.0 * weights * own + 4.0 * config.layers * config.width * own * seen


def decoder_seconds(size: Size, frames: int, turns: int) -> float:
  """Seconds for the latents of a chunk, with the cache of a stream that runs."""
  graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VideoVAE(size.vae, rngs=nnx.Rngs(0))))
  weights = random_like(shapes, jax.random.key(0))
  channels = size.vae.latent_channels
  latents = jax.random.normal(jax.random.key(1), (1, frames, *size.grid, channels))

  @jax.jit
  def begin(weights, first):
    vae = nnx.merge(graphdef, weights)
    return vae.decode_step(first, vae.init_decode_cache(1, *size.grid))[1]

  def decode(weights, cache, latents):
    return sampler.decoded_video(nnx.merge(graphdef, weights), cache, latents)

  cache = begin(weights, latents[:, :1])
  return median_seconds(decode, weights, cache, latents, turns=turns)[0]


def measured_with_layers(size: Size, settings: sampler.StreamSettings, turns: int) -> dict:
  """`transformer_times` with as many blocks as fit; `share` of all blocks that were measured."""
  layers = size.transformer.layers
  for some in (layers, *(n for n in (30, 20, 12, 8, 4, 2) if n < layers)):
    fewer = dataclasses.replace(
      size, transformer=dataclasses.replace(size.transformer, layers=some)
    )
    try:
      return transformer_times(fewer, settings, turns) | {"share": some / layers}
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      print(f"{size.name}: {some} blocks do not fit", flush=True)
  raise SystemExit(f"{size.name}: two blocks do not fit")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
  parser.add_argument("--attention", default="", help="TransformerConfig.attention")
  parser.add_argument("--turns", type=int, default=10)
  args = parser.parse_args()
  attention = args.attention or ("dense" if args.tiny else "cudnn")
  settings = sampler.StreamSettings(history=None)
  frames = settings.causal.frames
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, attention {attention}")
  print("ms; size        blocks  pass  backbone refiner decoder | TFLOP/s | fps in turn, pipelined")
  for size in sizes(args.tiny, attention):
    found = measured_with_layers(size, settings, args.turns)
    decoder = decoder_seconds(size, frames, args.turns)
    one, first, second = (
      found[name] / found["share"] for name in ("evaluation", "backbone", "refiner")
    )
    measured = round(size.transformer.layers * found["share"])
    mark = "" if found["share"] == 1 else f" (scaled from {measured} to {size.transformer.layers})"
    chunk = 4 * frames
    print(
      f"{size.name:12} {measured:9d} {1e3 * one:6.1f} {1e3 * first:8.1f} {1e3 * second:7.1f} "
      f"{1e3 * decoder:7.1f} | {found['flops'] / found['evaluation'] / 1e12:7.2f} | "
      f"{chunk / (first + second + decoder):.1f}, {chunk / max(first, second, decoder):.1f}{mark}; "
      f"temporary memory of a pass {found['temporary'] / 2**30:.2f} GiB",
      flush=True,
    )
  print("others, frames per second as their makers report:")
  for name, parameters, picture, reported in PEERS:
    print(f"  {name:16} {parameters:5} {picture:8} {reported}")


if __name__ == "__main__":
  main()
