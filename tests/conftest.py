"""Tests run on CPUs: libtpu is here for plans alone, and its profiler ends a process without TPUs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
