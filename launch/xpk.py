"""xpk: the commands that hand a job to a cluster made with it. xpk renders the manifest."""

import shlex

from launch import jobset
from launch.job import Job


def create(job: Job) -> list[str]:
  """`xpk workload create`.

  xpk fails a workload for good at any exit code but 42 and 127-255. Here a run starts again
  whatever its code (75 is `lpm train` asking for it; a host that loses another may end with 1), so
  all are named. Preemptions count too, unlike in our own manifest: xpk has no rule to tell them
  apart.

  `exec`, because xpk sends SIGTERM to the subshell it starts the command in: what runs there must
  be lpm itself, whatever the shell makes of a lone command.
  """
  capacity = {
    "spot": ["--spot"],
    "on-demand": ["--on-demand"],
    "reserved": [f"--reservation={job.reservation}"],
  }[job.capacity]
  return [
    *("xpk", "workload", "create"),
    f"--workload={job.name}",
    f"--cluster={job.cluster}",
    f"--project={job.project}",
    f"--zone={job.zone}",
    f"--tpu-type={job.slice.accelerator_type}",
    f"--num-slices={job.slices}",
    f"--docker-image={job.image}",
    f"--max-restarts={job.restarts}",
    "--restart-on-exit-codes=1-126",
    f"--termination-grace-period-seconds={job.grace}",
    *(f"--env={name}={value}" for name, value in job.environment.items()),
    *capacity,
    *([f"--storage={job.storage}"] if job.storage else []),
    f"--command=exec {shlex.join(['lpm', *job.command])}",
  ]


def logs(job: Job) -> list[str]:
  """Follows the first host; xpk makes job sets too, and names their container jax-tpu."""
  return jobset.logs(job, container="jax-tpu")


def delete(job: Job) -> list[str]:
  """Ends the job, with SIGTERM and the grace time."""
  return [
    *("xpk", "workload", "delete", f"--workload={job.name}", f"--cluster={job.cluster}"),
    *(f"--project={job.project}", f"--zone={job.zone}"),
  ]
