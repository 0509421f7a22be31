"""Submits an `lpm` run to TPU slices on Google Cloud. See docs/pods.md.

  python -m launch.submit --platform=gke --accelerator=v5p-256 --cluster=pods \
    --project=PROJECT --zone=ZONE --image=REGION-docker.pkg.dev/PROJECT/lpm/lpm:TAG \
    --config=configs/lpm_17b/base_480p.py --workdir=gs://BUCKET/runs/base_480p --dry-run
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
import tempfile

from launch import jobset, tpu_vm, xpk
from launch.accelerators import SLICES, find_slice
from launch.job import Job, check, check_config

_PLATFORMS = ("tpu-vm", "gke", "xpk")
_MODULES = {"tpu-vm": tpu_vm, "gke": jobset, "xpk": xpk}


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.submit",
    description="Submits an lpm run to TPU slices on Google Cloud (docs/pods.md).",
    epilog="Words after -- go to lpm: -- --config.steps=100. Accelerators: "
    + ", ".join(f"{s.accelerator_type} ({s.topology})" for s in SLICES),
  )
  add = parser.add_argument
  add("action", nargs="?", default="run", choices=("run", "logs", "delete"))
  add("--platform", required=True, choices=_PLATFORMS)
  add("--accelerator", required=True, help="v5p-256, or v5p:4x4x8")
  add("--topology", default="", help="what you believe it to be; checked")
  add("--slices", type=int, default=1)
  add("--verb", default="train", help="the lpm verb")
  add("--config", required=True, help="FILE[:arg], as in the image")
  add("--workdir", required=True, help="gs://BUCKET/FOLDER")
  add("--image", required=True, help="REGISTRY/PATH:TAG")
  add("--project", required=True)
  add("--zone", required=True, help="zone; for gke the location of the cluster")
  add("--name", default="", help="of the job; the last folder of the workdir if not given")
  add("--cluster", default="", help="gke, xpk: the cluster")
  add("--capacity", default="on-demand", choices=("spot", "reserved", "on-demand"))
  add("--reservation", default="", help="xpk: its name")
  add("--service-account", default="", help="gke: Kubernetes account; tpu-vm: e-mail of one")
  add("--queue", default="", help="gke: Kueue's local queue")
  add("--data", default="", help="gs://BUCKET/FOLDER, read-only at /data")
  add("--storage", default="", help="xpk: name of an attached storage")
  add("--grace", type=int, default=300, help="seconds for the last checkpoint")
  add("--restarts", type=int, default=50, help="of a run that ended with any code but 0")
  add("--dry-run", action="store_true", help="print what would be submitted, do nothing")
  own, words = (argv, []) if "--" not in argv else _split(argv)
  args = parser.parse_args(own)
  args.words = words
  return args


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
  at = argv.index("--")
  return argv[:at], argv[at + 1 :]


def make_job(args: argparse.Namespace) -> Job:
  """The checked job. Raises: ValueError: what is wrong with which flag."""
  for word in args.words:
    if not word.startswith("--config."):
      raise ValueError(f"words after --: found {word!r}, expected --config.KEY=VALUE")
  last = args.workdir.rstrip("/").rpartition("/")[2]
  job = Job(
    name=args.name or last.lower().replace("_", "-").replace(".", "-"),
    slice=find_slice(args.accelerator, args.topology),
    slices=args.slices,
    image=args.image,
    command=(
      *args.verb.split(),
      f"--config={args.config}",
      *args.words,
      f"--workdir={args.workdir}",
    ),
    workdir=args.workdir,
    project=args.project,
    zone=args.zone,
    cluster=args.cluster,
    capacity=args.capacity,
    reservation=args.reservation,
    service_account=args.service_account,
    queue=args.queue,
    data=args.data,
    storage=args.storage,
    grace=args.grace,
    restarts=args.restarts,
  )
  check(job, args.platform)
  check_config(args.config, args.words, job)
  return job


def _shown(command: list[str]) -> str:
  """A command as a shell reads it: its words, then a line a flag."""
  words = [shlex.quote(word) for word in command]
  first = next((at for at, word in enumerate(words) if word.lstrip("'")[:2] == "--"), len(words))
  return " \\\n  ".join([" ".join(words[:first]), *words[first:]])


def describe(job: Job, platform: str) -> str:
  """Exactly what `run` submits, as text."""
  text = [
    f"# {job.slices} x {job.slice.accelerator_type}: {job.slices * job.slice.chips} chips, "
    f"{job.hosts} hosts, {job.slices * job.slice.devices} devices"
  ]
  if platform == "tpu-vm":
    text += [
      "# Startup script of every host, startup.sh:",
      tpu_vm.startup_script(job).rstrip(),
      "# Then, and again after each preemption:",
      _shown(tpu_vm.create(job, "startup.sh")),
      "# Every minute, until all hosts have ended:",
      _shown(tpu_vm.describe(job)),
      _shown(tpu_vm.read_reports(job)),
      "# After each preemption, and at the end:",
      _shown(tpu_vm.delete(job)),
    ]
  elif platform == "gke":
    manifest = jobset.render(job).rstrip()
    text += [
      _shown(jobset.credentials(job)),
      f"{_shown(jobset.apply())} <<'MANIFEST'\n{manifest}\nMANIFEST",
    ]
  else:
    text += [_shown(xpk.create(job))]
  module = _MODULES[platform]
  text += ["# Logs:", _shown(module.logs(job)), "# End it:", _shown(module.delete(job))]
  return "\n".join(text)


def run(job: Job, platform: str):
  """Submits; for TPU VMs, also follows the job to its end."""
  if platform == "tpu-vm":
    with tempfile.TemporaryDirectory() as folder:
      script = pathlib.Path(folder) / "startup.sh"
      script.write_text(tpu_vm.startup_script(job))
      tpu_vm.supervise(job, str(script))
  elif platform == "gke":
    subprocess.run(jobset.credentials(job), check=True)
    subprocess.run(jobset.apply(), input=jobset.render(job), text=True, check=True)
  else:
    subprocess.run(xpk.create(job), check=True)


def main(argv: list[str] | None = None):
  """Entry point."""
  args = parse(sys.argv[1:] if argv is None else argv)
  try:
    job = make_job(args)
    module = _MODULES[args.platform]
    if args.action == "run" and args.dry_run:
      print(describe(job, args.platform))
    elif args.action == "run":
      run(job, args.platform)
    else:
      command = module.logs(job) if args.action == "logs" else module.delete(job)
      if args.dry_run:
        print(_shown(command))
      else:
        subprocess.run(command, check=True)
  except (ValueError, OSError, tpu_vm.LaunchError, subprocess.CalledProcessError) as error:
    sys.exit(f"launch.submit: {error}")


if __name__ == "__main__":
  main()
