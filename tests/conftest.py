"""Tests run on CPUs: libtpu is here for plans alone; its profiler ends a process without TPUs.

Most of their time would go into optimising programs that run for milliseconds, and into compiling
one program again for every run of it that is resumed or compared: workers and the processes that
they start keep what they compile in one folder, which goes with the tests.
"""

import os
import sys
import tempfile

import pytest

# The files that take longest, longest first: begun last, one of them keeps a single worker busy.
LONG = (
  "distillation/test_resume",
  "models/test_context",
  "distillation/test_tasks",
  "distillation/test_rollout",
  "training/test_base",
  "training/test_processes",
  "training/test_preference",
  "training/test_autoencoder",
  "streaming/test_pipeline",
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  programs = tempfile.TemporaryDirectory(prefix="programs-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


@pytest.fixture(autouse=True, scope="module")
def programs_of_a_few_files():
  """Where compiled programs have filled much memory, they go with the file that was the last."""
  yield
  if "jax" in sys.modules:
    from lpm_jax.stream import resident_bytes  # JAX is not imported before its options are set

    if resident_bytes() > 4e9:
      sys.modules["jax"].clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]):
  """Long files first, the others as they were found."""

  def place(item: pytest.Item) -> int:
    name = item.path.parent.name + "/" + item.path.stem
    return LONG.index(name) if name in LONG else len(LONG)

  items.sort(key=place)
