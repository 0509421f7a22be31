"""Texts of programs that jaxlib cannot print, from the compiler's own dump.

libtpu 0.0.52 makes programs for tpu7x whose asynchronous updates jaxlib refuses to read; the
compiler prints them all the same when it is told to before it is loaded.
"""

import atexit
import os
import pathlib
import shutil
import tempfile

_FOLDER: list[pathlib.Path] = []


def begin():
  """Has the compiler leave texts in a temporary folder; before libtpu is loaded, else in vain."""
  if _FOLDER:
    return
  _FOLDER.append(pathlib.Path(tempfile.mkdtemp(prefix="lpm_plan_")))
  atexit.register(shutil.rmtree, _FOLDER[0], ignore_errors=True)
  asked = (
    f"--xla_jf_dump_to={_FOLDER[0]} --xla_jf_dump_hlo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=^none$"
  )
  os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {asked}".strip()


def latest() -> str:
  """Text of the program that was compiled last; "" without a dump."""
  texts = _FOLDER[0].glob("*-TLP-hlo.txt") if _FOLDER else ()
  newest = max(texts, key=lambda path: path.stat().st_mtime_ns, default=None)
  return newest.read_text() if newest else ""
