"""Cycles of the training kernels as the TPU compiler schedules them: instruction bundles, counted.

  JAX_PLATFORMS=cpu python -m benchmarks.flash_kernel v6e:2x2
  JAX_PLATFORMS=cpu python -m benchmarks.flash_kernel v6e:2x2 --blocks 512 3328 256

Compiles splash attention forward and backward for one head of a 480p clip and an absent v6e or
tpu7x, with the blocks of models/flash.py or with others, and prints what share of the peak one
bundle a cycle would be. Nothing is measured: waiting for memory is not in a schedule, and what
begins and ends a row of blocks is left out. (v5p schedules cannot be read so: its bundles, counted,
would be faster than its peak.)
"""

import argparse
import os
import pathlib
import re
import tempfile

LENGTH, HEAD = 32 * 1560, 128
PEAK_PER_CYCLE = 2 * 2 * 2 * 256 * 256  # two units, two rows a cycle of 256 x 256 multiply-adds


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("topology")
  parser.add_argument("--blocks", type=int, nargs=3, help="rows, keys, keys of a product")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
      " --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    blocks = compile_kernels(args.topology, args.blocks)
    for kernel, products, (rows, keys, product) in zip(("fwd", "dkv"), (2, 5), blocks, strict=True):
      (text,) = pathlib.Path(folder).glob(f"*splash*{kernel}*-final_bundles.txt")
      found = longest_stretch(text.read_text())
      ideal = 2 * products * rows * keys * HEAD / PEAK_PER_CYCLE
      print(
        f"{args.topology} {kernel}: {found} bundles a block of {rows} x {keys} by {product}, "
        f"{ideal:.0f} at the peak: share {ideal / found:.3f}"
      )


def compile_kernels(topology: str, blocks: tuple[int, int, int] | None) -> list[tuple]:
  """Both kernels on one device; the compiler leaves its dumps. Returns the blocks they have."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from lpm_jax.models import flash
  from lpm_jax.parallel import options
  from lpm_jax.plan import chips

  chip = topology.split(":")[0]
  if blocks:
    flash.BLOCKS[chip] = blocks, blocks
  mesh = jax.sharding.Mesh(np.array(chips.devices_of(topology)[:1]), "x")
  here = jax.NamedSharding(mesh, jax.P())
  x = jax.ShapeDtypeStruct((1, 1, LENGTH, HEAD), jnp.bfloat16, sharding=here)

  def loss(query, key, value):
    how = flash.How("splash", chip, (None,))
    return flash.attend_parts(how, query, (key,), (value,), (None,)).astype(jnp.float32).sum()

  lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x)
  lowered.compile(compiler_options=options.CHIPS[chip])
  in_lanes = flash.Splash(chip)._in_lanes
  query, (key, _), _ = jax.eval_shape(lambda x: in_lanes(x, (x, x), None), x)
  one = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in (query, key)]
  return [flash._fitted(*one, largest) for largest in flash.BLOCKS[chip]]


def longest_stretch(text: str) -> int:
  """Bundles between two branches: the products of a block, which are unrolled."""
  cuts, count = [0], 0
  for line in text.splitlines():
    if re.match(r"\s*(0x[0-9a-f]+|0)\s+(\w\w)?\s*: ", line):
      count += 1
      if "sbr.rel" in line:
        cuts.append(count)
  cuts.append(count)
  return max(b - a for a, b in zip(cuts, cuts[1:], strict=False))


if __name__ == "__main__":
  main()
