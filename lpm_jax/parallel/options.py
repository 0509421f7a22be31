"""Compiler options, by chip and in groups that a config names; recorded with every plan and run.

Sources: maxtext's benchmarks/xla_flags_library.py, and what libtpu 0.0.52 accepts for each chip:
fusion of collectives into products (xla_tpu_enable_async_collective_fusion, in the recipes of the
same project) it refuses for v5p and v6e, "incorrect results, hang".
"""

from ml_collections import ConfigDict

# Blocks of the attention kernels are larger than what a chip's compiler gives a kernel by default.
CHIPS: dict[str, dict[str, str]] = {
  chip: {"xla_tpu_scoped_vmem_limit_kib": "65536"} for chip in ("v5p", "v6e")
} | {"tpu7x": {}}
GROUPS: dict[str, dict[str, str]] = {
  # collectives with a start and an end, so that work between them hides them
  "async": {
    "xla_enable_async_all_gather": "true",
    "xla_enable_async_all_reduce": "true",
    "xla_enable_async_collective_permute": "true",
    "xla_tpu_enable_async_all_to_all": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
  },
  # gradients of the data axis are summed while the backward pass goes on
  "data_parallel": {
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
  },
  # collectives on TensorCores alone, where SparseCores would have them
  "tensor_core": {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "false"
    for kind in ("all_gather", "2d_all_gather", "3d_all_gather", "all_reduce", "reduce_scatter")
  },
}


# Where SparseCores can carry collectives beside the TensorCores, "async" has them do it (on tpu7x
# they do it anyway).
SPARSE_CORES: dict[str, dict[str, str]] = {
  "v6e": {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_tpu_enable_concurrent_sparse_core_offloading": "true",
  }
}


def options_of(config: ConfigDict) -> dict[str, str]:
  """Options of the chip and of the groups in `config.flags`, ("async", ...).

  Raises ValueError for a group that is not known.
  """
  chip = config.topology.split(":")[0]
  if chip not in CHIPS:
    raise ValueError(f"topology: found {config.topology!r}, expected one of {', '.join(CHIPS)}:AxB")
  options = dict(CHIPS[chip])
  for name in config.get("flags", ()):
    if name not in GROUPS:
      raise ValueError(f"flags: found {name!r}, expected names of {sorted(GROUPS)}")
    options |= GROUPS[name] | (SPARSE_CORES.get(chip, {}) if name == "async" else {})
  return options
