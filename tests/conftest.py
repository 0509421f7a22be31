"""Tests run on CPUs: libtpu is here for plans alone; its profiler ends a process without TPUs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
