"""Several processes as one run: start-up from the environment, and what they tell each other."""

import os
import socket
from collections.abc import Mapping
from typing import Protocol

import jax
from absl import logging

RETRY = 75  # EX_TEMPFAIL: what the run had is saved, start the same command again

# JAX's own watch over its processes is the second line, behind `watchdog.Watchdog`: it ends the run
# when the interpreter of a process no longer runs.
_HEARTBEAT_SECONDS = 50


class Restart(SystemExit):
  """The run ends so that it can be started again; the process exits with code RETRY."""

  def __init__(self, reason: str):
    super().__init__(RETRY)
    self.reason = reason

  def __str__(self) -> str:
    return self.reason


def start(settings: Mapping | None = None):
  """Joins the processes of this run; call it before anything touches a JAX backend.

  A coordinator that is named (here, or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID in the environment) is used. Otherwise JAX looks for a cluster that it knows: TPU
  VMs, GKE, Slurm, MPI. A process with neither, or with JAX_PLATFORMS=cpu and no coordinator, is
  alone.

  Args:
    settings: `config.distributed`: coordinator ("host:port"; "": the environment), processes (0),
      process (-1), automatic (whether JAX looks for a cluster).

  Raises ValueError naming the value that is missing.
  """
  settings = dict(settings or {})
  address = settings.get("coordinator") or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
  if address:
    count = _number(settings.get("processes") or None, "processes", "JAX_NUM_PROCESSES")
    index = settings.get("process", -1)
    index = _number(index if index >= 0 else None, "process", "JAX_PROCESS_ID")
    if not 0 <= index < count:
      raise ValueError(f"distributed.process: found {index}, expected 0 to {count - 1}")
    if ":" not in address:
      raise ValueError(f"distributed.coordinator: found {address!r}, expected host:port")
    if count > 1:
      jax.distributed.initialize(
        address,
        count,
        index,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      )
  elif settings.get("automatic", True) and jax.config.jax_platforms != "cpu":
    try:
      jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except ValueError as error:
      if "coordinator_address" not in str(error):  # what JAX says where it finds no cluster
        raise
  if jax.distributed.is_initialized():
    logging.warning(
      "process %d of %d on %s", jax.process_index(), jax.process_count(), socket.gethostname()
    )


def _number(found: int | None, field: str, variable: str) -> int:
  """A field of `config.distributed`, else the environment's. Raises ValueError for neither."""
  text = os.environ.get(variable, "") if found is None else str(found)
  if not text.isdecimal():
    raise ValueError(
      f"distributed.{field}: a coordinator is named, but neither this nor {variable} is a number: "
      f"found {text!r}"
    )
  return int(text)


class Store(Protocol):
  """Short texts by key, seen by all processes of a run."""

  def key_value_set(self, key: str, value: str, allow_overwrite: bool = False):
    """Sets a key."""

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
    """All keys with a prefix that ends in "/", and their values."""


def store() -> Store | None:
  """JAX's coordination service, which process 0 holds in memory; None for a process alone."""
  from jax._src import distributed  # it has no public name; Orbax takes it from here too

  return distributed.global_state.client if jax.process_count() > 1 else None
