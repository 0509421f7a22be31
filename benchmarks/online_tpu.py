"""What the TPU compiler makes of the 17B backbone's chunk, without a TPU: memory and cycles.

  pip install libtpu
  python -m benchmarks.online_tpu --topology=v6e:2x4 --tensor=8

Three evaluations (two levels and the cache's own) of one second at 832x480, weights in bf16, heads
and inner widths over `tensor`. Cycles are the compiler's estimates, not measurements; kernels and
collectives are not in them.
"""

import argparse
import dataclasses
import functools
import os

CYCLES_PER_SECOND = 1.75e9  # of v5p and v6e
REFERENCES, ROWS, COLUMNS, TEXT, PAST = 4, 60, 104, 512, 12


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topology", default="v6e:2x4")
  parser.add_argument("--tensor", type=int, default=8)
  options = parser.parse_args()
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }
  report(compile_backbone(options.topology, options.tensor))


def compile_backbone(topology: str, tensor: int):
  """`coarse_latents` of the 17B model, compiled for the first `tensor` devices of a topology."""
  import jax
  import jax.numpy as jnp
  from flax import nnx
  from jax.experimental import topologies

  from lpm_jax.models.blocks import TransformerConfig
  from lpm_jax.models.cache import KVCache
  from lpm_jax.models.conditions import Conditions
  from lpm_jax.models.transformer import VideoTransformer
  from lpm_jax.parallel.mesh import make_mesh
  from lpm_jax.parallel.sharding import Placement, tree_shardings
  from lpm_jax.streaming.cache import StreamCache
  from lpm_jax.streaming.sampler import StreamSettings, coarse_latents

  shape = jax.ShapeDtypeStruct
  devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  mesh = make_mesh({"tensor": tensor}, devices[:tensor])
  place = Placement(mesh, (("heads", "tensor"), ("mlp", "tensor")))
  placed = lambda tree, where: jax.tree.map(  # noqa: E731
    lambda x, sharding: shape(x.shape, x.dtype, sharding=sharding), tree, where
  )
  whole = lambda tree: placed(  # noqa: E731
    tree, jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), tree)
  )

  config = dataclasses.replace(TransformerConfig.lpm_17b(), attention="splash")
  graphdef, model = nnx.split(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))
  model = jax.tree.map(lambda x: shape(x.shape, jnp.bfloat16), model)
  model = placed(model, tree_shardings(model, mesh, dict(place.rules)))

  settings, tokens = StreamSettings(), ROWS * COLUMNS // 4
  head = config.width // config.heads

  def keys(grids: int):
    return shape((config.layers // 2, 2, 1, grids, tokens, config.heads, head), jnp.bfloat16)

  slots = 1 + REFERENCES
  seen = shape((1, slots), jnp.int32), shape((1, slots), bool)
  pinned = KVCache(keys(slots), keys(slots), *seen)
  chunks = keys((settings.causal.sink + settings.causal.window) * settings.causal.frames)
  cache = StreamCache(pinned, chunks, chunks, shape((), jnp.int32), settings.causal)
  cache = placed(cache, place.shardings(cache, cache.axes()))
  frames = settings.causal.frames
  track = shape((1, PAST + frames, 4, config.audio_width), jnp.bfloat16)
  none = shape((1, 0), jnp.int32)
  conditions = Conditions(
    text=shape((1, TEXT, config.text_width), jnp.bfloat16),
    speak=track,
    listen=track,
    references=shape((1, 0, ROWS, COLUMNS, config.channels), jnp.float32),
    reference_kind=none,
    reference_label=none,
  )
  latents = (1, frames, ROWS, COLUMNS, config.channels)

  @functools.partial(jax.jit, donate_argnums=1)
  def run(model, cache, conditions, key):
    backbone = nnx.merge(graphdef, model)
    coarse, cache = coarse_latents(backbone, cache, settings, conditions, key, latents)
    return coarse, place.keep(cache, cache.axes())

  key = whole(jax.eval_shape(lambda: jax.random.key(0)))
  with jax.set_mesh(mesh):
    return run.lower(model, cache, whole(conditions), key).compile()


def report(compiled):
  """Prints memory of a device, cycles, collectives and the costliest operations."""
  from lpm_jax.plan import program

  memory, found = compiled.memory_analysis(), program.instructions(compiled.as_text())
  for name in ("argument", "temp", "output", "alias"):
    print(f"{name:<10} {getattr(memory, f'{name}_size_in_bytes') / 2**30:8.2f} GiB a device")
  milliseconds = lambda cycles: 1e3 * cycles / CYCLES_PER_SECOND  # noqa: E731
  print(f"estimated  {milliseconds(program.cycles(found)):8.0f} ms but kernels and collectives")
  for moved in program.traffic(found):
    print(f"{moved.kind} in groups of {moved.group}: {moved.count}, {moved.bytes / 2**30:.2f} GiB")
  for operation, count in program.costliest(found):
    print(f"{milliseconds(count):8.1f} ms  {operation[:110]}")


if __name__ == "__main__":
  main()
