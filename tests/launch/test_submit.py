import pathlib
import shlex
import string
import subprocess
import sys

import pytest

from launch import submit
from launch.accelerators import SLICES, find_slice

_GOLDEN = pathlib.Path(__file__).parent / "golden"
_COMMON = (
  "--project=my-project",
  "--zone=us-east5-a",
  "--image=us-docker.pkg.dev/my-project/lpm/lpm:1",
  "--config=tests/launch/config.py",
  "--workdir=gs://my-bucket/runs/base_480p",
)
# One case a platform; together they have one and several slices, data, and words for lpm.
CASES = {
  "tpu-vm": (
    "--accelerator=v5p-256",
    "--slices=2",
    "--capacity=spot",
    "--data=gs://my-bucket/latents",
    *_COMMON,
    "--",
    "--config.data.path=/data/train",
  ),
  "gke": (
    "--accelerator=tpu7x:4x4x4",
    "--slices=2",
    "--capacity=spot",
    "--cluster=pods",
    "--data=gs://my-bucket/latents",
    "--service-account=trainer",
    "--queue=lpm",
    *_COMMON,
    "--",
    "--config.data.path=/data/train",
  ),
  "xpk": (
    "--accelerator=v6e-256",
    "--capacity=reserved",
    "--reservation=ours",
    "--cluster=pods",
    "--storage=latents",
    *_COMMON,
  ),
}


@pytest.mark.parametrize("platform", CASES)
def test_dry_run_prints_the_golden_text(platform, capsys):
  submit.main([f"--platform={platform}", "--dry-run", *CASES[platform]])
  assert capsys.readouterr().out == (_GOLDEN / f"{platform}.txt").read_text()


def test_dry_run_starts_no_process(monkeypatch, capsys):
  monkeypatch.setattr(subprocess, "Popen", None)
  for platform, words in CASES.items():
    for action in ("run", "logs", "delete"):
      submit.main([action, f"--platform={platform}", "--dry-run", *words])
  assert "queued-resources delete" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("changed", "named"),
  [
    ("--accelerator=v5p-250", "'v5p-250' (did you mean v5p-256?)"),
    ("--accelerator=v5p:4x4x6", "'v5p:4x4x6'"),
    ("--topology=4x4x4", "topology: found 4x4x4, expected 4x4x8"),
    ("--workdir=runs/base", "workdir: found 'runs/base', expected gs://BUCKET/FOLDER"),
    ("--workdir=gs://my-bucket", "workdir"),
    ("--image=lpm", "image: found 'lpm', expected REGISTRY/PATH:TAG"),
    ("--slices=0", "slices: found 0"),
    ("--accelerator=v5p-64", "does not fit the 32 devices of 1 x v5p-64"),
    ("--name=Base_480p", "name: found 'Base_480p'"),
    ("--cluster=", "cluster"),
    ("--config=tests/launch/none.py", "tests/launch/none.py"),
    ("--config=tests/launch/config.py:v9", "v9"),
    ("--reservation=ours", "reservation: found 'ours'"),
    ("--storage=latents", "storage: found 'latents'"),
    ("--project=", "project"),
  ],
)
def test_bad_input_is_named_and_nothing_is_submitted(changed, named, monkeypatch):
  monkeypatch.setattr(subprocess, "Popen", None)
  words = ["--platform=gke", "--accelerator=v5p-256", "--cluster=pods", *_COMMON, changed]
  with pytest.raises(SystemExit) as exit_:
    submit.main(words)
  assert named in str(exit_.value)


def test_a_mesh_without_a_free_axis_must_be_all_of_the_devices(capsys):
  words = ["--platform=gke", "--accelerator=v5p-256", "--cluster=pods", "--dry-run", *_COMMON]
  words += ["--config=tests/launch/config.py:one"]
  submit.main(words)
  assert "128 devices" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="does not fit the 256 devices of 2 x v5p-256"):
    submit.main([*words, "--slices=2"])
  submit.main([*words, "--slices=2", "--", "--config.sharding.mesh.data=4"])


def test_tpu7x_cannot_be_had_as_a_tpu_vm():
  with pytest.raises(SystemExit, match="gke or xpk"):
    submit.main(["--platform=tpu-vm", "--accelerator=tpu7x-128", *_COMMON])


def test_words_for_lpm_must_be_config_overrides():
  words = ["--platform=tpu-vm", "--accelerator=v5p-256", *_COMMON, "--", "--confg.steps=1"]
  with pytest.raises(SystemExit, match="'--confg.steps=1'"):
    submit.main(words)


def test_it_runs_as_a_module():
  command = [sys.executable, "-m", "launch.submit", "--platform=xpk", "--dry-run", *CASES["xpk"]]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("# 1 x v6e-256: 256 chips, 64 hosts, 256 devices\nxpk workload")


def test_accelerator_types_count_tensor_cores_and_topologies_chips():
  """Cloud TPU's documentation: a v5p chip and a TPU7x chip have two TensorCores, a v6e chip one."""
  assert (find_slice("v5p-256").chips, find_slice("v5p-256").topology) == (128, "4x4x8")
  assert (find_slice("v6e-256").chips, find_slice("v6e-256").hosts) == (256, 64)
  assert (find_slice("tpu7x-128").chips, find_slice("tpu7x-128").devices) == (64, 128)
  for one in SLICES:
    assert find_slice(one.accelerator_type) == one
    assert find_slice(f"{one.family}:{one.topology}") == one
  assert find_slice("v5p:8x8x4") == find_slice("v5p-512")


def documented() -> list[list[str]]:
  """The commands of docs/pods.md, with its variables filled in."""
  text = (pathlib.Path(__file__).parents[2] / "docs" / "pods.md").read_text()
  values = dict(
    PROJECT="my-project", ZONE="us-east5-a", BUCKET="my-bucket", ACCOUNT="lpm@p.iam", IMAGE="r/x:1"
  )
  text = string.Template(text.replace("\\\n", " ")).safe_substitute(values)
  lines = [line for line in text.splitlines() if line.startswith("python -m launch.submit")]
  return [shlex.split(line)[3:] for line in lines]


@pytest.mark.parametrize("words", documented(), ids=lambda words: words[0])
def test_documented_commands_are_accepted(words, capsys):
  submit.main(["run", "--dry-run", *words])
  assert capsys.readouterr().out.startswith("# 2 x v5p-256: 256 chips")
