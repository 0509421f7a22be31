"""What `launch.submit` really calls, with stand-ins for gcloud, kubectl and xpk on the path."""

import pathlib
import shlex

import pytest
from test_submit import CASES

from launch import submit

_GOLDEN = pathlib.Path(__file__).parent / "golden"
# Notes its words, and a startup script or its standard input; plays a slice that is done at once.
_STAND_IN = r"""#!/bin/bash
printf '%s\0' "$(basename "$0")" "$@" >> calls; printf '\n' >> calls
for word in "$@"; do
  case $word in
    --metadata-from-file=startup-script=*) cp "${word##*=}" startup.sh; touch alive ;;
    --filename=-) cat > manifest ;;
  esac
done
case "$*" in
  *'queued-resources describe'*) [[ -e alive ]] && echo ACTIVE || { echo NOT_FOUND >&2; exit 1; } ;;
  *'queued-resources delete'*) rm alive ;;
  'storage cat'*) [[ -e alive ]] && for i in {1..64}; do echo "host-$i ${CODE:-0}"; done ;;
esac
"""


_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Calls `launch.submit` and returns the calls it made, and what it ended with."""
  for name in ("gcloud", "kubectl", "xpk"):
    (tmp_path / name).write_text(_STAND_IN)
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
  monkeypatch.chdir(tmp_path)

  def run(action, platform) -> tuple[list[list[str]], str]:
    words = [word.replace("=tests/", f"={_ROOT}/tests/") for word in CASES[platform]]
    reason = ""
    try:
      submit.main([action, f"--platform={platform}", *words])
    except SystemExit as end:
      reason = end.code
    calls = (tmp_path / "calls").read_text().replace(f"{_ROOT}/", "").splitlines()
    return [line.rstrip("\0").split("\0") for line in calls], reason

  return run


def printed(platform: str) -> str:
  """The golden text of the dry run, every command on one line."""
  return (_GOLDEN / f"{platform}.txt").read_text().replace(" \\\n  ", " ")


def test_tpu_vm_calls_and_starts_what_the_dry_run_prints(run, tmp_path):
  calls, reason = run("run", "tpu-vm")
  assert not reason
  text = printed("tpu-vm")
  (create,) = [call for call in calls if "create" in call]
  create[-1] = "--metadata-from-file=startup-script=startup.sh"
  assert shlex.join(create) in text
  assert [shlex.join(call) in text for call in calls if "delete" in call] == [True]
  script = (tmp_path / "startup.sh").read_text()
  assert script.rstrip().replace(f"{_ROOT}/", "").replace(" \\\n  ", " ") in text


def test_gke_applies_the_manifest_the_dry_run_prints(run, tmp_path):
  calls, reason = run("run", "gke")
  assert not reason
  assert all(shlex.join(call) in printed("gke") for call in calls) and len(calls) == 2
  manifest = (tmp_path / "manifest").read_text()
  assert manifest.replace(f"{_ROOT}/", "").rstrip() in printed("gke")


def test_xpk_is_called_as_the_dry_run_prints(run):
  calls, reason = run("run", "xpk")
  assert not reason
  assert [shlex.join(call) in printed("xpk") for call in calls] == [True]


@pytest.mark.parametrize("platform", CASES)
@pytest.mark.parametrize("action", ["logs", "delete"])
def test_logs_and_delete_call_what_the_dry_run_prints(run, platform, action, tmp_path):
  (tmp_path / "alive").touch()
  calls, reason = run(action, platform)
  assert not reason
  assert [shlex.join(call) in printed(platform) for call in calls] == [True]


def test_a_failed_run_ends_the_command_with_the_reason(run, monkeypatch):
  monkeypatch.setenv("CODE", "134")
  calls, reason = run("run", "tpu-vm")
  assert "host-1" in reason and "gcloud logging read" in reason
  assert any("delete" in call for call in calls)
