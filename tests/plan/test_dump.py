"""The compiler's dump: asked for once, and the newest program is read."""

import os

from lpm_jax.plan import dump


def test_the_newest_program_is_read(monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--given=1")
  monkeypatch.setattr(dump, "_FOLDER", [])
  assert dump.latest() == "", "nothing was asked for"
  dump.begin()
  dump.begin()
  assert os.environ["LIBTPU_INIT_ARGS"].startswith("--given=1 ")
  assert os.environ["LIBTPU_INIT_ARGS"].count("--xla_jf_dump_to=") == 1
  assert dump.latest() == ""
  for name, time, text in (("9-TLP-hlo.txt", 1, "old"), ("1-TLP-hlo.txt", 2, "new"), ("x", 3, "-")):
    path = dump._FOLDER[0] / name
    path.write_text(text)
    os.utime(path, (time, time))
  assert dump.latest() == "new"
