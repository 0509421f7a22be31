import subprocess
import sys

import pytest


def lpm(*words: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "lpm_jax.cli", *words]
  return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_verb():
  done = lpm("--help")
  assert done.returncode == 0
  for verb in ("data puppets", "data encode", "train", "distill", "prefer", "generate", "evaluate"):
    assert f"lpm {verb}" in done.stdout


def test_an_unknown_verb_shows_the_usage():
  done = lpm("trian")
  assert done.returncode == 2
  assert "usage: lpm VERB" in done.stdout


@pytest.mark.parametrize(
  ("words", "named"),
  [
    (("--config=configs/puppets/vae.py",), "--workdir"),
    (("--workdir=w",), "--config"),
    (("--config=configs/puppets/vae.py", "--workdir=w", "--config.modle.base=4"), "modle"),
    (("--config=configs/puppets/vae.py:huge", "--workdir=w"), "huge"),
    (("--config=configs/puppets/vae.py", "--workdir=w", "more"), "more"),
  ],
)
def test_wrong_words_are_named_before_any_work(words, named, tmp_path):
  done = lpm("train", *words)
  assert done.returncode != 0
  assert named in done.stderr + done.stdout


def test_an_unwritable_workdir_is_named(tmp_path):
  taken = tmp_path / "file"
  taken.write_text("not a folder")
  done = lpm("data", "puppets", "--config=configs/puppets/data.py:demo", f"--workdir={taken}/data")
  assert done.returncode != 0
  assert str(taken) in done.stderr
  assert taken.read_text() == "not a folder"
