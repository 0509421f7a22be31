"""Bytes that each process of a mesh reads when an import becomes a sharded model.

Starts the processes on loopback, one CPU device each, all parameters sharded over them. Each reads
its own chunks: with N processes about 1 / N of the import.
  python -m benchmarks.weights_mesh --weights=FOLDER_OF_AN_IMPORT --processes=2
"""

import argparse
import pathlib
import resource
import socket
import subprocess
import sys

PRESET = "t2v_1b"
RULES = {"embed": "fsdp", "mlp": "fsdp", "heads": "fsdp"}


def read_bytes() -> int:
  """Bytes this process has read from files so far, cached or not (Linux)."""
  lines = pathlib.Path("/proc/self/io").read_text().splitlines()
  return int(dict(line.split(": ") for line in lines)["rchar"])


def fill(weights: str, address: str, count: int, index: int):
  """One process: fills its shards and prints what it read."""
  import jax
  from flax import nnx

  from configs.lpm_17b.weights import get_config
  from lpm_jax.parallel.mesh import make_mesh
  from lpm_jax.parallel.sharding import tree_shardings
  from lpm_jax.weights import store
  from lpm_jax.weights.public import public_model

  jax.distributed.initialize(address, count, index)
  mesh = make_mesh({"fsdp": -1})
  module = public_model(get_config(PRESET)).abstract()
  state = nnx.state(module)
  shardings = tree_shardings(state, mesh, RULES)
  place = lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)  # noqa: E731
  nnx.update(module, jax.tree.map(place, state, shardings))
  before = read_bytes()
  store.find_import(weights, "transformer").fill(module)
  held = [leaf for leaf in jax.tree.leaves(nnx.state(module)) if isinstance(leaf, jax.Array)]
  kept = sum(shard.data.nbytes for leaf in held for shard in leaf.addressable_shards)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(
    f"process {index} of {count}: read {(read_bytes() - before) / 1e9:.2f} GB, keeps "
    f"{kept / 1e9:.2f} GB in fp32, peak memory {peak / 1e9:.2f} GB",
    flush=True,
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--weights", required=True)
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # address, index
  flags = parser.parse_args()
  if flags.child:
    fill(flags.weights, flags.child[0], flags.processes, int(flags.child[1]))
    return
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-m", "benchmarks.weights_mesh", f"--weights={flags.weights}"]
  command += [f"--processes={flags.processes}", "--child", address]
  children = [subprocess.Popen([*command, str(i)]) for i in range(flags.processes)]
  sys.exit(max(child.wait() for child in children))


if __name__ == "__main__":
  main()
