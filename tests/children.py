"""What child processes of tests run with."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def with_devices(count: int) -> dict[str, str]:
  """An environment with so many CPU devices; all else, the compiler's options too, is ours."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
  return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
