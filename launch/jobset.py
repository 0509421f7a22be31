"""GKE: the JobSet manifest of a job, and the commands around it."""

import pathlib

import jinja2

from launch.accelerators import CHIPS_PER_HOST
from launch.job import DATA_MOUNT, Job, split_bucket

_TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml.j2")


def render(job: Job) -> str:
  """The manifest, as YAML with its comments."""
  bucket, prefix = split_bucket(job.data)
  template = jinja2.Template(
    _TEMPLATE.read_text(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
  )
  return template.render(
    name=job.name,
    queue=job.queue,
    restarts=job.restarts,
    slices=job.slices,
    slice=job.slice,
    bucket=bucket,
    prefix=prefix,
    grace=job.grace,
    service_account=job.service_account,
    capacity=job.capacity,
    image=job.image,
    command=list(job.command),
    environment=job.environment,
    chips_per_host=CHIPS_PER_HOST,
    data_mount=DATA_MOUNT,
  )


def credentials(job: Job) -> list[str]:
  """Points kubectl at the cluster."""
  return [
    *("gcloud", "container", "clusters", "get-credentials", job.cluster),
    *(f"--location={job.zone}", f"--project={job.project}"),
  ]


def apply() -> list[str]:
  """Submits the manifest on standard input."""
  return ["kubectl", "apply", "--filename=-"]


def logs(job: Job, container: str = "lpm") -> list[str]:
  """Follows the first host, which is process 0."""
  first = (
    f"jobset.sigs.k8s.io/jobset-name={job.name}",
    "jobset.sigs.k8s.io/job-index=0",
    "batch.kubernetes.io/job-completion-index=0",
  )
  return [
    *("kubectl", "logs", f"--selector={','.join(first)}", f"--container={container}"),
    *("--tail=-1", "--follow"),
  ]


def delete(job: Job) -> list[str]:
  """Ends the job, with SIGTERM and the grace time."""
  return ["kubectl", "delete", "jobset", job.name]
