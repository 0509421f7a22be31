"""The stages of a stream, compiled at full size for devices that are not there."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ShapeDtypeStruct as Shape
from jax.stages import Lowered
from ml_collections import ConfigDict

from lpm_jax.models.blocks import TransformerConfig
from lpm_jax.models.cache import KVCache
from lpm_jax.models.chunk_attention import kernel_flops
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import Placement, tree_shardings
from lpm_jax.plan import program
from lpm_jax.plan.chips import chip_of
from lpm_jax.streaming import sampler
from lpm_jax.streaming.cache import StreamCache

STAGES = ("backbone", "refiner", "decoder")
RULES = (("heads", "tensor"), ("mlp", "tensor"))


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """What a stage of one chunk asks of each of its devices.

  Attributes:
    stage: one of STAGES.
    devices: over which it is spread: heads and inner widths, or columns of the picture.
    arguments, temporaries: bytes; arguments are weights and caches, which stay.
    kernel_flops: of attention kernels, padding included.
    cycles: the compiler's estimate of everything but kernels and collectives; None where it does
      not give the program's text: then traffic and costliest are empty too.
    traffic: collectives.
    costliest: operations with the most cycles.
  """

  stage: str
  devices: int
  arguments: int
  temporaries: int
  kernel_flops: int
  cycles: int | None
  traffic: tuple[program.Traffic, ...]
  costliest: tuple[tuple[str, int], ...]


class DoesNotFit(Exception):
  """A stage needs more memory than its devices have; the text is the compiler's."""


def plan_stage(config: ConfigDict, stage: str, devices: list) -> StagePlan:
  """Compiles one stage; `config` is that of configs/lpm_17b/plan_stream.py, whose chip it is.

  Raises DoesNotFit for a stage that needs more memory than the devices have.
  """
  lower_stage = _lower_decoder if stage == "decoder" else _lower_transformer
  lowered, flops = lower_stage(config, stage, devices)
  try:
    compiled = lowered.compile(compiler_options=dict(chip_of(config.topology).options))
  except jax.errors.JaxRuntimeError as error:
    if "HbmOom" not in str(error):
      raise
    raise DoesNotFit(str(error).splitlines()[0]) from error
  memory = compiled.memory_analysis()
  try:
    found = program.instructions(compiled.as_text())
  except jax.errors.JaxRuntimeError:  # libtpu 0.0.52: large programs of tpu7x
    found = None
  return StagePlan(
    stage=stage,
    devices=len(devices),
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    kernel_flops=flops,
    cycles=program.cycles(found) if found else None,
    traffic=tuple(program.traffic(found or [])),
    costliest=tuple(program.costliest(found or [], 10)),
  )


def _lower_transformer(config: ConfigDict, stage: str, devices: list) -> tuple[Lowered, int]:
  """Backbone or refiner on a chunk, and FLOPs of its kernels on a device."""
  width = TransformerConfig(**config.transformer)
  settings = sampler.StreamSettings(**config.stream)
  mesh = make_mesh({"tensor": len(devices)}, devices)
  place = Placement(mesh, RULES)
  graphdef, model = nnx.split(nnx.eval_shape(lambda: VideoTransformer(width, rngs=nnx.Rngs(0))))
  model = jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), model)
  model = _placed(model, tree_shardings(model, mesh, dict(RULES)))

  rows, columns = config.height // 8, config.width // 8
  frames, tokens = settings.causal.frames, rows * columns // 4
  cache = _cache(width, settings, config.references, tokens)
  cache = _placed(cache, place.shardings(cache, cache.axes()))
  latents = (1, frames, rows, columns, width.channels)
  evaluate = _evaluate(stage, settings, latents)

  @functools.partial(jax.jit, donate_argnums=1)
  def run(model, cache, conditions, key, coarse):
    made, cache = evaluate(nnx.merge(graphdef, model), cache, conditions, key, coarse)
    return made, place.keep(cache, cache.axes())

  key = jax.eval_shape(lambda: jax.random.key(0))
  rest = (_conditions(config, width, frames), key, Shape(latents, jnp.float32))
  with jax.set_mesh(mesh):
    lowered = run.lower(model, cache, *_whole(rest, mesh))
  evaluations = settings.evaluations()[STAGES.index(stage)]
  held = (settings.causal.sink + settings.causal.window) * frames
  keys = (1 + config.references + held + frames) * tokens
  heads = width.heads // len(devices)
  flops = kernel_flops(frames * tokens, keys, heads, width.width // width.heads)
  return lowered, evaluations * width.layers * flops


def _evaluate(stage: str, settings: sampler.StreamSettings, latents: tuple[int, ...]) -> Callable:
  if stage == "refiner":
    return lambda model, cache, conditions, key, coarse: sampler.refined_latents(
      model, cache, settings, conditions, key, coarse
    )
  return lambda model, cache, conditions, key, _: sampler.coarse_latents(
    model, cache, settings, conditions, key, latents
  )


def _lower_decoder(config: ConfigDict, stage: str, devices: list) -> tuple[Lowered, int]:
  """The autoencoder's decoder on a chunk, each device with some columns of the picture."""
  mesh = make_mesh({"tensor": len(devices)}, devices)
  rows, columns = config.height // 8, config.width // 8
  vae_config = VAEConfig(dtype="bfloat16")
  graphdef, vae = nnx.split(nnx.eval_shape(lambda: VideoVAE(vae_config, rngs=nnx.Rngs(0))))
  vae = jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), vae)
  shape = (1, 1, rows, columns, vae_config.latent_channels)
  first = Shape(shape, jnp.float32)

  def begun(vae, latent):
    vae = nnx.merge(graphdef, vae)
    return vae.decode_step(latent, vae.init_decode_cache(1, rows, columns))[1]

  def by_columns(x: Shape) -> Shape:
    split = x.ndim == 5 and x.shape[3] % len(devices) == 0
    spec = jax.P(None, None, None, "tensor") if split else jax.P()
    return Shape(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

  cache = jax.tree.map(by_columns, jax.eval_shape(begun, vae, first))
  frames = sampler.StreamSettings(**config.stream).causal.frames
  latents = by_columns(Shape((1, frames, *shape[2:]), jnp.float32))

  @functools.partial(jax.jit, donate_argnums=1)
  def run(vae, cache, latents):
    return sampler.decoded_video(nnx.merge(graphdef, vae), cache, latents)

  with jax.set_mesh(mesh):
    return run.lower(_whole(vae, mesh), cache, latents), 0


def _cache(
  width: TransformerConfig, settings: sampler.StreamSettings, references: int, tokens: int
) -> StreamCache:
  def keys(grids: int) -> Shape:
    head = width.width // width.heads
    return Shape((width.layers // 2, 2, 1, width.heads, grids, tokens, head), jnp.bfloat16)

  slots = 1 + references
  where = Shape((1, slots), jnp.int32), Shape((1, slots), bool)
  pinned = KVCache(keys(slots), keys(slots), *where)
  causal = settings.causal
  chunks = keys((causal.sink + causal.window) * causal.frames)
  return StreamCache(pinned, chunks, chunks, Shape((), jnp.int32), causal)


def _conditions(config: ConfigDict, width: TransformerConfig, frames: int) -> Conditions:
  track = Shape((1, config.past_audio + frames, 4, width.audio_width), jnp.bfloat16)
  none = Shape((1, 0), jnp.int32)
  grid = (1, 0, config.height // 8, config.width // 8, width.channels)
  return Conditions(
    text=Shape((1, config.text_length, width.text_width), jnp.bfloat16),
    speak=track,
    listen=track,
    references=Shape(grid, jnp.float32),
    reference_kind=none,
    reference_label=none,
  )


def _placed(tree, shardings):
  return jax.tree.map(lambda x, s: Shape(x.shape, x.dtype, sharding=s), tree, shardings)


def _whole(tree, mesh):
  return _placed(tree, jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), tree))
