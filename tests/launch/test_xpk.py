"""Our table and manifest against xpk's, and the command we give it, in xpk's own dry run.

xpk wants an environment of its own: point XPK at its program. Run with xpk 1.16.0:
  python -m venv /tmp/xpk && /tmp/xpk/bin/pip install xpk==1.16.0
  XPK=/tmp/xpk/bin/xpk pytest tests/launch/test_xpk.py
"""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from test_jobset import JOB, manifest

from launch import xpk
from launch.accelerators import SLICES, find_slice

_XPK = os.environ.get("XPK") or shutil.which("xpk")
needs_xpk = pytest.mark.skipif(not _XPK, reason="xpk is not installed; see this file's docstring")


def their_manifest(job, folder: pathlib.Path) -> dict:
  """What xpk would apply for `xpk.create(job)`."""
  out = folder / "manifest.yaml"
  command = [_XPK, *xpk.create(job)[1:]]
  command += ["--dry-run", "--skip-validation", f"--output-manifest-file={out}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
  assert done.returncode == 0, done.stdout + done.stderr
  return yaml.safe_load(out.read_text())


@needs_xpk
@pytest.mark.parametrize("one", SLICES, ids=lambda s: s.accelerator_type)
def test_xpk_knows_every_slice_by_the_same_name_and_shape(one):
  python = pathlib.Path(_XPK).with_name("python")
  script = (
    "import sys; from xpk.core.system_characteristics import "
    "UserFacingNameToSystemCharacteristics as table; s = table[sys.argv[1]]; "
    "print(s.topology, s.vms_per_slice, s.chips_per_vm, s.gke_accelerator, s.gce_machine_type)"
  )
  done = subprocess.run(
    [python, "-c", script, one.accelerator_type], capture_output=True, text=True
  )
  ours = f"{one.topology} {one.hosts} 4 {one.kind.gke} {one.kind.machine}"
  assert done.stdout.strip() == ours, done.stderr


@needs_xpk
@pytest.mark.parametrize(
  ("accelerator", "slices"), [("v5p-256", 2), ("v6e-256", 1), ("tpu7x-128", 1)]
)
def test_our_manifest_asks_for_what_xpk_asks_for(accelerator, slices, tmp_path):
  job = dataclasses.replace(JOB, slice=find_slice(accelerator), slices=slices)

  def asked(whole):
    (replicated,) = whole["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # A policy of node pools that xpk itself creates, for TPU7x.
    selector = {k: v for k, v in pod["nodeSelector"].items() if "placement-policy" not in k}
    return dict(
      annotations=whole["metadata"]["annotations"],
      slices=replicated["replicas"],
      pods=(spec["parallelism"], spec["completions"], spec["backoffLimit"]),
      selector=selector,
      tolerations=pod["tolerations"],
      network=(pod["hostNetwork"], pod["dnsPolicy"]),
      restart=(pod["restartPolicy"], whole["spec"]["failurePolicy"]["maxRestarts"]),
      grace=pod["terminationGracePeriodSeconds"],
      image=container["image"],
      environment=container["env"],
      resources=container["resources"],
      privileged=container["securityContext"]["privileged"],
      shared_memory=container["volumeMounts"][0]["mountPath"],
    )

  assert asked(manifest(job)) == asked(their_manifest(job, tmp_path))


@needs_xpk
def test_xpk_starts_a_run_again_whatever_its_exit_code(tmp_path):
  (replicated,) = their_manifest(JOB, tmp_path)["spec"]["replicatedJobs"]
  (rule,) = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["operator"] == "NotIn"
  assert sorted(rule["onExitCodes"]["values"]) == list(range(1, 256))


@needs_xpk
def test_sigterm_reaches_the_command_through_the_shell_of_xpk(tmp_path):
  """The shell xpk wraps the command in, run for real with a stand-in for lpm."""
  (replicated,) = their_manifest(JOB, tmp_path)["spec"]["replicatedJobs"]
  (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
  lpm = tmp_path / "lpm"
  lpm.write_text(
    "#!/bin/bash\nprintf '%s\\n' \"$@\" > words\n"
    "trap 'touch saved; exit 75' TERM\ntouch started\nwhile true; do sleep 0.1; done\n"
  )
  lpm.chmod(0o755)
  env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  process = subprocess.Popen(container["command"], cwd=tmp_path, env=env, start_new_session=True)
  try:
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
  assert (tmp_path / "saved").exists()
  assert (tmp_path / "words").read_text().splitlines() == list(JOB.command)
