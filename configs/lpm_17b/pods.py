"""Pods: what of a training config depends on where it runs. Presets of base_480p and base_720p.

Sequences of a clip stay whole where memory allows; otherwise `context` devices share one. States
lie apart over fsdp and context. Every preset takes 256 clips a step (512 on v5p_1024), in as many
parts as it takes. Names are Google's accelerator types: v5p counts cores, two a chip; tpu7x too.
"""

from ml_collections import ConfigDict

PODS = {  # topology, chip, parts of a batch at 480p; at 720p four times as many where context is 4
  "v5p_128": ("v5p:4x4x4", 64),
  "v5p_256": ("v5p:4x4x8", 128),
  "v5p_512": ("v5p:8x8x4", 256),
  "v5p_1024": ("v5p:8x8x8", 512),
  "v5p_2x256": ("v5p:4x4x8,slices=2", 256),
  "v6e_256": ("v6e:16x16", 256),
  "tpu7x_64": ("tpu7x:2x4x4", 64),
  "tpu7x_128": ("tpu7x:4x4x4", 128),
}
# Groups of compiler options: on v6e collectives are worth hiding; on tpu7x there is little to hide,
# and programs for SparseCores take ten times as long to compile.
FLAGS = {"v5p": (), "v6e": ("async",), "tpu7x": ("tensor_core",)}
STREAM_CONTEXT = {"v5p": 4, "v6e": 8, "tpu7x": 4}  # four v6e have no room for a stream's caches
CONTEXT = {480: {"v5p": 1, "v6e": 4, "tpu7x": 1}, 720: {"v5p": 4, "v6e": 8, "tpu7x": 4}}


def on_pod(c: ConfigDict, name: str, height: int) -> ConfigDict:
  """The config with the mesh, batch and kernels of a pod; ValueError for a name not in PODS."""
  if name not in PODS:
    raise ValueError(f"preset: found {name!r}, expected one of {', '.join(PODS)}")
  topology, devices = PODS[name]
  chip = topology.split(":")[0]
  slice_devices = devices // int(topology.partition("slices=")[2] or 1)
  context = CONTEXT[height][chip]
  c.topology = topology
  c.batch_size = max(256, devices // context)
  c.accumulate = c.batch_size * context // devices
  c.model.transformer.chip = chip
  c.flags = FLAGS[chip]
  c.sharding.mesh = dict(data=-1, fsdp=min(64, slice_devices // context), context=context)
  return c


def streams_on_pod(c: ConfigDict, name: str) -> ConfigDict:
  """`on_pod` for training on streams of 480p: several devices to one, its caches apart by heads.

  A step has a clip for each of those groups (64 on v5p_512) and is not accumulated.
  """
  c = on_pod(c, name, height=480)
  context = STREAM_CONTEXT[c.model.transformer.chip]
  groups = PODS[name][1] // context
  slices = int(c.topology.partition("slices=")[2] or 1)
  c.batch_size, c.accumulate = groups, 1
  c.sharding.mesh = dict(data=-1, fsdp=min(64, groups // slices), context=context)
  return c
