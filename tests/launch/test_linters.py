import pathlib
import shutil
import subprocess
import sys

import pytest
from test_jobset import JOB

from launch import tpu_vm

_LAUNCH = pathlib.Path(tpu_vm.__file__).parent


def _run(tool: str, *words: str, text: str | None = None) -> subprocess.CompletedProcess:
  beside = pathlib.Path(sys.executable).with_name(tool)
  found = str(beside) if beside.exists() else shutil.which(tool)
  if found is None:
    pytest.skip(f"{tool} is not installed; it comes with the dev extra")
  return subprocess.run([found, *words], input=text, capture_output=True, text=True)


def test_shell_scripts_pass_shellcheck():
  done = _run("shellcheck", str(_LAUNCH / "demo.sh"))
  assert done.returncode == 0, done.stdout
  # host.sh is only ever run with the values of a job above it.
  done = _run("shellcheck", "-", text=tpu_vm.startup_script(JOB))
  assert done.returncode == 0, done.stdout


def test_shellcheck_sees_a_word_that_is_not_quoted():
  script = tpu_vm.startup_script(JOB).replace('docker pull "$IMAGE"', "docker pull $1")
  assert "SC2086" in _run("shellcheck", "-", text=script).stdout


def test_the_dockerfile_passes_hadolint():
  done = _run("hadolint", str(_LAUNCH / "Dockerfile"))
  assert done.returncode == 0, done.stdout


def test_the_image_gets_what_the_dockerfile_copies():
  """The ignore file lets through exactly the sources of COPY, and all of them exist."""
  lines = (_LAUNCH / "Dockerfile").read_text().splitlines()
  copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
  ignore = (_LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
  assert {line[1:] for line in ignore if line.startswith("!")} == copied
  assert all((_LAUNCH.parent / name).exists() for name in copied)
