"""host.sh under bash, with stand-ins for docker, gcloud and what else it calls."""

import dataclasses
import pathlib
import subprocess

import pytest
from test_jobset import JOB

from launch import tpu_vm

_STAND_INS = {
  # Takes the next exit code of ./codes; appends its words to ./docker, one a line.
  "docker": """
    printf '%s\\n' "$*" >> docker
    case $1 in
      login) cat > password ;;
      pull) [[ ! -e no-registry ]] ;;
      run) code=$(head -1 codes); sed -i 1d codes; exit "$code" ;;
    esac
  """,
  "gcloud": """
    case $1 in
      auth) echo token ;;
      storage) [[ "$2 $3" == 'cp -' ]] && cat > reported && echo "$4" > reported-to ;;
    esac
  """,
  "hostname": "echo t1v-n-1234-w-0",
  "systemctl": "cat system-state; exit 1",
  "sleep": 'echo "$1" >> slept',
  "mountpoint": "exit 1",
  "gcsfuse": "printf '%s\\n' \"$*\" >> gcsfuse-words",
  "mkdir": "true",
}


@pytest.fixture
def host(tmp_path):
  """Runs the startup script of a job; returns its lines about docker."""
  for name, body in _STAND_INS.items():
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}")
    path.chmod(0o755)
  (tmp_path / "system-state").write_text("running\n")

  def run(codes, **changes) -> subprocess.CompletedProcess:
    job = dataclasses.replace(JOB, slices=1, **changes)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    (tmp_path / "script.sh").write_text(tpu_vm.startup_script(job))
    return subprocess.run(
      ["bash", "script.sh"],
      cwd=tmp_path,
      env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
      capture_output=True,
      text=True,
      timeout=30,
    )

  return run


def runs(folder: pathlib.Path) -> list[str]:
  return [line for line in (folder / "docker").read_text().splitlines() if line.startswith("run ")]


def test_a_finished_run_reports_zero_under_the_workdir(host, tmp_path):
  done = host([0])
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "reported").read_text() == "t1v-n-1234-w-0 0\n"
  assert (tmp_path / "reported-to").read_text() == "gs://bucket/w/launch/base/t1v-n-1234-w-0\n"
  assert len(runs(tmp_path)) == 1


def test_the_command_reaches_the_image_with_the_grace_time(host, tmp_path):
  host([0], grace=123)
  (line,) = runs(tmp_path)
  assert line.endswith(" ".join([JOB.image, *JOB.command]))
  assert "--stop-timeout 123" in line
  assert "--env JAX_COMPILATION_CACHE_DIR=gs://bucket/w/compiled" in line
  assert "/data" not in line


def test_exit_code_75_and_failures_start_the_run_again(host, tmp_path):
  host([75, 134, 1, 0], restarts=3)
  assert len(runs(tmp_path)) == 4
  assert (tmp_path / "reported").read_text() == "t1v-n-1234-w-0 0\n"


def test_restarts_are_counted_and_the_last_one_is_reported(host, tmp_path):
  host([134, 75, 139, 0], restarts=2)
  assert len(runs(tmp_path)) == 3
  assert (tmp_path / "reported").read_text() == "t1v-n-1234-w-0 139\n"


def test_a_host_that_shuts_down_starts_nothing_and_reports_nothing(host, tmp_path):
  (tmp_path / "system-state").write_text("stopping\n")
  assert host([75, 0]).returncode == 0
  assert len(runs(tmp_path)) == 1
  assert not (tmp_path / "reported").exists()


def test_an_image_that_cannot_be_pulled_ends_the_run(host, tmp_path):
  (tmp_path / "no-registry").touch()
  assert host([0]).returncode == 1
  assert (tmp_path / "reported").read_text() == "t1v-n-1234-w-0 1\n"
  assert (tmp_path / "slept").read_text() == "30\n" * 5


def test_the_data_folder_is_mounted_read_only(host, tmp_path):
  host([0], data="gs://data-bucket/some/folder")
  words = (tmp_path / "gcsfuse-words").read_text().split()
  assert words[words.index("--only-dir") + 1] == "some/folder"
  assert words[-2:] == ["data-bucket", "/mnt/data"]
  assert "--volume /mnt/data:/data:ro" in runs(tmp_path)[0]
