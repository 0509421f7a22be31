"""The error of everything that reads or writes media, and files that appear whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

Path = str | os.PathLike


class MediaError(ValueError):
  """A file cannot be used. The message names the file, what was found and what was expected."""

  def __init__(self, path: Path, found: str, expected: str):
    super().__init__(f"{os.fspath(path)}: found {found}, expected {expected}")


def check_readable(path: Path, expected: str):
  """Raises MediaError for a missing file, a folder and a file of no bytes."""
  path = pathlib.Path(path)
  if not path.exists():
    raise MediaError(path, "no such file", expected)
  if not path.is_file():
    raise MediaError(path, "a folder", expected)
  if path.stat().st_size == 0:
    raise MediaError(path, "an empty file (0 bytes)", expected)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[pathlib.Path]:
  """A temporary name in the folder of `path`: renamed to it on success, removed on failure.

  Creates the folder. Raises MediaError when the file cannot be written there.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    if path.is_dir():
      raise IsADirectoryError("it is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch()
  except OSError as error:
    raise MediaError(path, f"{error.strerror or error}", "a file that can be written") from error
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def check_writable(path: Path):
  """Raises MediaError when `path` cannot be written; leaves no trace in its folder."""
  path = pathlib.Path(path)
  with contextlib.suppress(_Tried), written_whole(path):
    raise _Tried


class _Tried(Exception):
  """Ends a trial write."""
