"""What is submitted, whichever platform it goes to, checked before anything costs money."""

import dataclasses
import importlib.util
import math
import pathlib
import re
from collections.abc import Sequence

from launch.accelerators import Slice

DATA_MOUNT = "/data"


@dataclasses.dataclass(frozen=True)
class Job:
  """One `lpm` command on every host of one or more slices.

  Attributes:
    command: the words after `lpm`, workdir and config included.
    workdir: gs:// folder of the run; TPU VMs leave their exit codes under it.
    data: gs:// folder mounted read-only at /data through Cloud Storage FUSE; "" for none.
    storage: xpk's name of such a folder, which is attached to a cluster once.
    capacity: spot, reserved or on-demand.
    grace: seconds between SIGTERM and SIGKILL, for the last checkpoint.
    restarts: how often a run starts again that ended with any code but 0. Where slices were taken
      away, that does not count; on xpk it does.
  """

  name: str
  slice: Slice
  slices: int
  image: str
  command: tuple[str, ...]
  workdir: str
  project: str
  zone: str
  cluster: str = ""
  capacity: str = "on-demand"
  reservation: str = ""
  service_account: str = ""
  queue: str = ""
  data: str = ""
  storage: str = ""
  grace: int = 300
  restarts: int = 50

  @property
  def hosts(self) -> int:
    return self.slices * self.slice.hosts

  @property
  def environment(self) -> dict[str, str]:
    """Variables of every host: programs compiled once are there after a restart."""
    return {"JAX_COMPILATION_CACHE_DIR": f"{self.workdir.rstrip('/')}/compiled"}


def split_bucket(url: str) -> tuple[str, str]:
  """gs://BUCKET/PREFIX -> (BUCKET, PREFIX)."""
  bucket, _, prefix = url.removeprefix("gs://").partition("/")
  return bucket, prefix.strip("/")


def check(job: Job, platform: str):
  """Refuses a job that the platform would refuse, or run wrongly.

  Raises:
    ValueError: names the field, what was found and what is expected.
  """

  def expect(holds: bool, field: str, found: object, expected: str):
    if not holds:
      raise ValueError(f"{field}: found {found!r}, expected {expected}")

  for field in ("project", "zone"):
    expect(bool(getattr(job, field)), field, getattr(job, field), "its name")
  # Kubernetes appends up to 22 characters and allows 63; xpk allows 40.
  expect(
    re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", job.name) is not None,
    "name",
    job.name,
    "at most 40 of a-z, 0-9 and -, beginning with a letter and not ending with -",
  )
  for field in ("workdir", "data"):
    url = getattr(job, field)
    if field == "data" and not url:
      continue
    expect(
      re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]/[-\w./=]+", url) is not None,
      field,
      url,
      "gs://BUCKET/FOLDER",
    )
  expect(
    re.fullmatch(r"[\w.-]+(:\d+)?/[\w./-]+(:[\w.-]+|@sha256:[0-9a-f]{64})", job.image) is not None,
    "image",
    job.image,
    "REGISTRY/PATH:TAG or REGISTRY/PATH@sha256:DIGEST",
  )
  expect(job.slices >= 1, "slices", job.slices, "1 or more")
  expect(job.grace >= 0, "grace", job.grace, "seconds, 0 or more")
  expect(job.restarts >= 0, "restarts", job.restarts, "0 or more")
  if platform == "tpu-vm":
    expect(
      bool(job.slice.kind.runtime),
      "platform",
      platform,
      f"gke or xpk: the Cloud TPU API does not offer {job.slice.family}",
    )
  else:
    expect(bool(job.cluster), "cluster", job.cluster, f"the GKE cluster, for platform {platform}")
  expect(
    not (job.data and platform == "xpk"),
    "data",
    job.data,
    "none on xpk: attach it once, `xpk storage attach NAME --type=gcsfuse --bucket=... "
    f"--mount-point={DATA_MOUNT} --readonly=true --auto-mount=false`, and name it with --storage",
  )
  expect(platform == "xpk" or not job.storage, "storage", job.storage, "none: xpk alone has it")
  named = platform == "xpk" and job.capacity == "reserved"
  expect(
    bool(job.reservation) == named,
    "reservation",
    job.reservation,
    "the name of the reservation" if named else "none: xpk with capacity reserved alone takes one",
  )


def check_config(config: str, words: Sequence[str], job: Job):
  """Loads FILE[:arg] as `lpm` will and compares its mesh with the devices of the job.

  Args:
    config: FILE[:arg].
    words: --config.KEY=VALUE; those of the mesh count here.

  Raises:
    ValueError: the file or the preset is not there, or the mesh does not fit the devices.
  """
  file, _, arg = config.partition(":")
  if not pathlib.Path(file).is_file():
    raise ValueError(f"config: found no file {file}")
  spec = importlib.util.spec_from_file_location("submitted_config", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  loaded = module.get_config(arg or None)
  mesh = dict(loaded.get("sharding", {}).get("mesh", {}))
  for word in words:
    if changed := re.fullmatch(r"--config\.sharding\.mesh\.(\w+)=(-?\d+)", word):
      mesh[changed[1]] = int(changed[2])
  devices = job.slices * job.slice.devices
  fixed = math.prod(size for size in mesh.values() if size != -1)
  fits = devices % fixed == 0 if -1 in mesh.values() else devices == fixed
  if mesh and not fits:
    raise ValueError(
      f"config: {config} has the mesh {mesh}, which does not fit the {devices} devices of "
      f"{job.slices} x {job.slice.accelerator_type}"
    )
