"""Queued-resource TPU VMs: ask for slices, wait, run on every host, start again, hand them back.

Every host runs host.sh at boot, so nothing depends on this process or on ssh: `supervise` only asks
for slices again when they were preempted, and gives them back when the run has ended. It can be
stopped and started again at any time.
"""

import collections
import pathlib
import shlex
import subprocess
import time
from collections.abc import Callable

from launch.job import Job

_HOST = pathlib.Path(__file__).with_name("host.sh")
# A queued resource in any other state is on its way to ACTIVE, or is ACTIVE.
_ENDED = ("FAILED", "SUSPENDED")
_POLL_SECONDS = 60
# How long the other hosts may take after the first has reported the end of the run.
_LAST_HOSTS_SECONDS = 600
_PATIENCE = 10  # failed looks in a row before giving up


def startup_script(job: Job) -> str:
  """host.sh with the values of this job above it."""
  values = dict(
    NAME=job.name,
    IMAGE=job.image,
    WORKDIR=job.workdir.rstrip("/"),
    DATA=job.data,
    GRACE=str(job.grace),
    RESTARTS=str(job.restarts),
  )
  lines = ["#!/usr/bin/env bash"]
  lines += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
  lines += [f"COMMAND=({shlex.join(job.command)})"]
  variables = [f"{name}={value}" for name, value in job.environment.items()]
  lines += [f"ENVIRONMENT=({shlex.join(variables)})", ""]
  return "\n".join(lines) + _HOST.read_text()


def _queued(verb: str, job: Job, *flags: str) -> list[str]:
  where = (f"--project={job.project}", f"--zone={job.zone}")
  return ["gcloud", "compute", "tpus", "queued-resources", verb, job.name, *where, *flags]


def create(job: Job, script: str) -> list[str]:
  """Asks for the slices. Args: script: the file with `startup_script`."""
  one = job.slices == 1
  nodes = [f"--node-id={job.name}"] if one else [f"--node-count={job.slices}"]
  nodes += [] if one else [f"--node-prefix={job.name}"]
  capacity = {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[job.capacity]
  account = [f"--service-account={job.service_account}"] if job.service_account else []
  return _queued(
    "create",
    job,
    f"--accelerator-type={job.slice.accelerator_type}",
    f"--runtime-version={job.slice.kind.runtime}",
    *nodes,
    *capacity,
    *account,
    f"--labels=lpm={job.name}",
    f"--metadata-from-file=startup-script={script}",
  )


def describe(job: Job) -> list[str]:
  """Prints the state of the queued resource."""
  return _queued("describe", job, "--format=value(state.state)")


def delete(job: Job) -> list[str]:
  """Hands the slices back, with the queued resource."""
  return _queued("delete", job, "--force", "--quiet")


def reports(job: Job) -> str:
  """Where the hosts leave their exit codes."""
  return f"{job.workdir.rstrip('/')}/launch/{job.name}/*"


def read_reports(job: Job) -> list[str]:
  """Prints a line `HOST CODE` per host that has ended."""
  return ["gcloud", "storage", "cat", reports(job)]


def clear_reports(job: Job) -> list[str]:
  """Removes what an earlier run of this name left."""
  return ["gcloud", "storage", "rm", reports(job)]


def logs(job: Job) -> list[str]:
  """Prints the last lines of all hosts; Cloud Logging keeps them when the hosts are gone."""
  chosen = f'logName:"gcplogs-docker-driver" AND jsonPayload.container.name="/{job.name}"'
  return [
    *("gcloud", "logging", "read", chosen, f"--project={job.project}", "--limit=1000"),
    *("--order=asc", "--format=value(timestamp, jsonPayload.instance.name, jsonPayload.message)"),
  ]


class LaunchError(RuntimeError):
  """A run that ended without success, or that cannot be followed."""


def _run(command: list[str]) -> subprocess.CompletedProcess:
  return subprocess.run(command, capture_output=True, text=True)


def _expect(done: subprocess.CompletedProcess):
  if done.returncode:
    raise LaunchError(f"{shlex.join(done.args)}: exit code {done.returncode}\n{done.stderr}")


def supervise(
  job: Job,
  script: str,
  *,
  run: Callable[[list[str]], subprocess.CompletedProcess] = _run,
  sleep: Callable[[float], None] = time.sleep,
  clock: Callable[[], float] = time.monotonic,
  say: Callable[[str], None] = print,
):
  """Follows a job to its end; follows one that is there already, instead of making a second.

  Args:
    script: the file with `startup_script`.
    run, sleep, clock, say: how to call gcloud, wait, tell the time and speak.

  Raises:
    LaunchError: the run failed for good, the request was refused, somebody deleted it, or gcloud
      fails again and again.
  """

  def look() -> str:
    """State of the queued resource, NONE when there is none."""
    for _ in range(_PATIENCE):
      done = run(describe(job))
      if done.returncode == 0:
        return done.stdout.strip()
      if "NOT_FOUND" in done.stderr:
        return "NONE"
      sleep(_POLL_SECONDS)
    raise LaunchError(f"cannot look at {job.name}: {done.stderr}")

  def ended() -> dict[str, int]:
    lines = run(read_reports(job)).stdout.splitlines()
    return {host: int(code) for host, code in (line.split() for line in lines)}

  def hand_back():
    _expect(run(delete(job)))
    while look() != "NONE":
      sleep(_POLL_SECONDS)

  def request():
    say(f"{job.name}: asking for {job.slices} x {job.slice.accelerator_type}, {job.capacity}")
    _expect(run(create(job, script)))

  _expect(run(["gcloud", "storage", "ls", f"gs://{job.workdir[5:].partition('/')[0]}"]))
  state = look()
  if state == "NONE":
    run(clear_reports(job))
    if left := ended():
      raise LaunchError(f"{reports(job)} cannot be removed; it holds {left}")
    request()
  else:
    say(f"{job.name}: is there already, {state}; following it")

  before, active, first_report, restarts = "", False, None, 0
  while True:
    codes = ended()
    if codes and first_report is None:
      first_report = clock()
    if len(codes) >= job.hosts or (codes and clock() - first_report > _LAST_HOSTS_SECONDS):
      break
    state = look()
    if state != before:
      say(f"{job.name}: {state}")
      before = state
    active |= state == "ACTIVE"
    if state == "NONE":
      raise LaunchError(f"{job.name}: the queued resource was deleted before the run ended")
    if state in _ENDED:
      if state == "FAILED":
        restarts += 1
        if not active or restarts > job.restarts:
          detail = run(_queued("describe", job, "--format=yaml(state)")).stdout
          raise LaunchError(f"{job.name}: the request failed; nothing is running\n{detail}")
      say(f"{job.name}: preempted; the new slices continue from the newest checkpoint")
      hand_back()
      run(clear_reports(job))
      first_report = None
      request()
    sleep(_POLL_SECONDS)

  say(f"{job.name}: ended, exit codes {dict(collections.Counter(codes.values()))}; handing back")
  hand_back()
  if any(codes.values()):
    failed = [host for host, code in codes.items() if code]
    raise LaunchError(f"{job.name}: {', '.join(failed)} failed; see {shlex.join(logs(job))}")
