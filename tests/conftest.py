"""Tests run on CPUs: libtpu is here for plans alone; its profiler ends a process without TPUs.

Most of their time would go into optimising programs that run for milliseconds, and into compiling
one program again for every run of it that is resumed or compared: workers and the processes that
they start keep what they compile in one folder, which goes with the tests.
"""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  programs = tempfile.TemporaryDirectory(prefix="programs-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
