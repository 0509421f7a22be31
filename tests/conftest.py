"""Tests run on CPUs: libtpu is here for plans alone; its profiler ends a process without TPUs.

Most of their time would go into optimising programs that run for milliseconds.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
