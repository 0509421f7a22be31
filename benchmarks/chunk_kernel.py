r"""Cycles of the chunk kernel as the TPU compiler schedules it: instruction bundles, counted.

  JAX_PLATFORMS=cpu python -m benchmarks.chunk_kernel v6e:2x2

Compiles `chunk_attend` of one device of eight at 17B (5 heads, 9,360 queries, 41 grids of 1,560
keys) for an absent TPU, reads the final bundles from the compiler's dump and prints the share of
the peak at one bundle a cycle. Nothing is measured: waiting for memory is not in a schedule.
"""

import argparse
import os
import pathlib
import re
import tempfile

PEAK_PER_CYCLE = 2 * 2 * 2 * 256 * 256  # two units, two rows a cycle of 256 x 256 multiply-adds
HEADS, FRAMES, TOKENS, HEAD = 5, 6, 1560, 128
GRIDS = (5, 30, 6)  # picture and references, sink and window, the chunk


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("topology")
  topology = parser.parse_args().topology
  with tempfile.TemporaryDirectory() as folder:
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
      " --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    compile_kernel(topology)
    (text,) = pathlib.Path(folder).glob("*chunk_attention*-final_bundles.txt")
    loop, rest = bundles(text.read_text())
  from lpm_jax.models import chunk_attention

  parts = -(-FRAMES * TOKENS // chunk_attention.PART)
  turns, more = divmod(parts - 1, chunk_attention._UNROLLED)
  cycles = turns * loop + rest
  needed = 4 * FRAMES * TOKENS * TOKENS * HEAD / PEAK_PER_CYCLE
  print(f"{topology}: {loop} bundles a turn of {chunk_attention._UNROLLED} parts, {turns} turns")
  print(f"{rest} bundles beside ({more + 1} parts, loads, what begins and ends a head: at most)")
  print(f"{cycles} cycles a grid of keys, {needed:.0f} at the peak: share {needed / cycles:.3f}")


def compile_kernel(topology: str):
  """The kernel of one device; the compiler leaves its dump."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from lpm_jax.models.chunk_attention import Source, chunk_attend
  from lpm_jax.plan import chips

  mesh = jax.sharding.Mesh(np.array(chips.devices_of(topology)[:1]), "x")
  here = jax.NamedSharding(mesh, jax.P())
  shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype, sharding=here)  # noqa: E731
  query = shape(1, HEADS, FRAMES * TOKENS, HEAD)
  cached = [shape(1, 1, 1, HEADS, grids, TOKENS, HEAD) for grids in GRIDS]
  norm, block = shape(1, HEADS, dtype=jnp.float32), shape(2, dtype=jnp.int32)
  sources = [Source(keys, keys, norm, block) for keys in cached]
  jax.jit(chunk_attend).lower(query, sources, shape(1, sum(GRIDS), dtype=jnp.bool_)).compile()


def bundles(text: str) -> tuple[int, int]:
  """Bundles of the loop over parts of bounded scores, and of everything outside of inner loops."""
  places = re.findall(r"^ *(0x[0-9a-f]+|0) +(\w\w)?: +(>*)", text, re.MULTILINE)
  depths = [len(marks) for _, _, marks in places]
  inner, length = [], 0
  for depth, after in zip(depths, [*depths[1:], 0], strict=True):
    length += depth > 1
    if depth > 1 and after <= 1:
      inner.append(length)
      length = 0
  return max(inner), len(depths) - sum(inner)


if __name__ == "__main__":
  main()
