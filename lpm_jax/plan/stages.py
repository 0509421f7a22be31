"""The stages of a stream, compiled at full size for devices that are not there."""

import dataclasses
import functools

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
from lpm_jax.parallel import layout, options
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import Placement, tree_shardings
from lpm_jax.plan import chips, compiled
from lpm_jax.plan.lowering import shard_bytes
from lpm_jax.plan.schedule import Schedule, read_schedule
from lpm_jax.streaming import sampler
from lpm_jax.streaming.cache import StreamCache

STAGES = ("backbone", "refiner", "decoder")


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """What a stage of one chunk asks of each of its devices.

  Attributes:
    stage: one of STAGES.
    devices: over which it is spread: heads and inner widths, or columns of the picture.
    arguments, temporaries: bytes; arguments are weights and caches, which stay.
    kernel_flops: of attention kernels, padding included.
    schedule: the program.
  """

  stage: str
  devices: int
  arguments: int
  temporaries: int
  kernel_flops: int
  schedule: Schedule = dataclasses.field(repr=False)


class DoesNotFit(Exception):
  """A stage needs more memory than its devices have; the text is the compiler's."""


def plan_transformers(settings: dict, topology: str) -> list[StagePlan]:
  """Backbone and refiner; `settings` are those of configs/lpm_17b/plan_stream.py.

  They are one program but for the number of evaluations, so one evaluation is compiled: the loop
  over layers counts once an evaluation, what is outside of it (keys are turned, the cache takes in
  the chunk) once a chunk.

  Raises DoesNotFit for stages that need more memory than the devices have.
  """
  config, devices = ConfigDict(settings), chips.devices_of(topology)
  one = _plan(config, "backbone", devices, *_lower_transformer(config, devices))
  turns = config.transformer.layers // 2
  evaluations = sampler.StreamSettings(**config.stream).evaluations()
  return [
    _repeated(dataclasses.replace(one, stage=stage), turns, count)
    for stage, count in zip(STAGES, evaluations, strict=False)
  ]


def plan_decoder(settings: dict, topology: str) -> StagePlan:
  """The decoder; see `plan_transformers`."""
  config, devices = ConfigDict(settings), chips.devices_of(topology)
  return _plan(config, "decoder", devices, *_lower_decoder(config, devices), 0)


def _plan(
  config: ConfigDict, stage: str, devices: list, lowered: Lowered, arguments: int, flops: int
) -> StagePlan:
  made = compiled.compile_lowered(lowered, options.options_of(config), config.codegen)
  if made.memory is None:
    raise DoesNotFit(made.refused)
  return StagePlan(
    stage=stage,
    devices=len(devices),
    arguments=arguments,
    temporaries=made.memory.total - arguments,
    kernel_flops=flops,
    schedule=_in_place(read_schedule(made.text)),
  )


def _in_place(schedule: Schedule) -> Schedule:
  """Kernels move nothing but what their share of the peak allows for: caches are not read whole."""
  return dataclasses.replace(
    schedule,
    computations={
      name: tuple(dataclasses.replace(op, moved=0) if op.kernel else op for op in operations)
      for name, operations in schedule.computations.items()
    },
  )


def _repeated(plan: StagePlan, turns: int, count: int) -> StagePlan:
  """The plan with `count` evaluations: loops of `turns` turn as many times as often."""
  schedule = plan.schedule
  entry = tuple(
    dataclasses.replace(op, trips=count * op.trips) if op.trips == turns else op
    for op in schedule.computations[schedule.entry]
  )
  computations = schedule.computations | {schedule.entry: entry}
  schedule = dataclasses.replace(schedule, computations=computations)
  return dataclasses.replace(plan, kernel_flops=count * plan.kernel_flops, schedule=schedule)


def _lower_transformer(config: ConfigDict, devices: list) -> tuple[Lowered, int, int]:
  """A chunk of a backbone with one evaluation.

  And of each device the bytes of its arguments and the FLOPs of its kernels.
  """
  width = TransformerConfig(**config.transformer)
  settings = sampler.StreamSettings(**config.stream)
  settings = dataclasses.replace(settings, backbone=(1.0,), history=None)
  mesh = make_mesh({config.apart: len(devices)}, devices)
  rules = (("heads", config.apart), ("mlp", config.apart))
  place = Placement(mesh, rules)
  graphdef, model = nnx.split(nnx.eval_shape(lambda: VideoTransformer(width, rngs=nnx.Rngs(0))))
  model = jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), model)
  model = _placed(model, tree_shardings(model, mesh, dict(rules)))

  rows, columns = config.height // 8, config.width // 8
  frames, tokens = settings.causal.frames, rows * columns // 4
  cache = _cache(width, settings, config.references, tokens)
  cache = _placed(cache, place.shardings(cache, cache.axes()))
  latents = (1, frames, rows, columns, width.channels)

  @functools.partial(jax.jit, donate_argnums=1)
  def run(model, cache, conditions, key):
    backbone = nnx.merge(graphdef, model)
    made, cache = sampler.coarse_latents(backbone, cache, settings, conditions, key, latents)
    return made, place.keep(cache, cache.axes())

  key = jax.eval_shape(lambda: jax.random.key(0))
  rest = (_conditions(config, width, frames), key)
  with jax.set_mesh(mesh), layout.in_force(stored=dict(rules)):
    given = model, cache, *_whole(rest, mesh)
    lowered = run.lower(*given)
  held = (settings.causal.sink + settings.causal.window) * frames
  keys = (1 + config.references + held + frames) * tokens
  sizes = width.heads // len(devices), width.width // width.heads
  flops = sum(kernel_flops(frames * tokens, of, *sizes) for of in (keys, config.text_length))
  return lowered, shard_bytes(given), width.layers * flops


def _lower_decoder(config: ConfigDict, devices: list) -> tuple[Lowered, int]:
  """The autoencoder's decoder on a chunk, each device with some columns of the picture.

  And the bytes of its arguments.
  """
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
    given = _whole(vae, mesh), cache, latents
    return run.lower(*given), shard_bytes(given)


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
