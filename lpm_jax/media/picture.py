"""Picture files -> square uint8 pictures, and reference pictures with their kind and label."""

import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipelines.clip import EXPRESSIONS, REFERENCE_KINDS, VIEWS
from lpm_jax.media.files import MediaError, Path, check_readable

PICTURE = "a picture (png, jpeg, webp, ...)"
LABELS = (("",), VIEWS, EXPRESSIONS)  # names of the labels of each kind of reference
_GREY = (128, 128, 128)


class Reference(NamedTuple):
  """A reference picture uint8 [H, W, 3]; kind and label as in `data_pipelines.clip.Clip`."""

  picture: np.ndarray
  kind: int
  label: int


def read_reference(spec: str, size: int | tuple[int, int]) -> Reference:
  """A reference from "path:kind[:label]", such as "me.png:global" or "left.png:view:left".

  Raises ValueError for a kind or label that does not exist, MediaError as `read_picture` does.
  """
  path, kind, label = _split_spec(spec)
  if label not in LABELS[kind]:
    expected = f"{REFERENCE_KINDS[kind]}: one of {', '.join(LABELS[kind])}"
    raise ValueError(f"reference {spec!r}: found the label {label!r}, expected {expected}")
  return Reference(read_picture(path, size), kind, LABELS[kind].index(label))


def _split_spec(spec: str) -> tuple[str, int, str]:
  """Path, kind and label; read from the right, since a path may hold colons."""
  parts = spec.split(":")
  for labels in (0, 1):
    name = parts[-1 - labels].replace("_", " ") if len(parts) > 1 + labels else ""
    name = "body view" if name == "view" else name
    if name in REFERENCE_KINDS:
      path = ":".join(parts[: -1 - labels])
      return path, REFERENCE_KINDS.index(name), parts[-1] if labels else ""
  raise ValueError(
    f"reference {spec!r}: expected PATH:KIND[:LABEL], KIND global, view or expression"
  )


def read_picture(path: Path, size: int | tuple[int, int]) -> np.ndarray:
  """A picture of any shape and mode: uint8 [H, W, 3]; `size` is (H, W), or one number for both.

  Turned as its EXIF data says, transparent parts over grey, the centre cut out and resized.
  Raises MediaError for a file that is missing, empty, damaged or no picture.
  """
  height, width = (size, size) if isinstance(size, int) else size
  check_readable(path, PICTURE)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      with Image.open(path) as file:
        picture = _over_grey(ImageOps.exif_transpose(file))
  except UnidentifiedImageError as error:
    raise MediaError(path, "a file that is no picture", PICTURE) from error
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise MediaError(path, f"a damaged picture ({error})", PICTURE) from error
  except Image.DecompressionBombWarning as error:
    raise MediaError(path, f"too many pixels ({error})", PICTURE) from error
  return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def _over_grey(picture: Image.Image) -> Image.Image:
  """RGB; what is transparent shows grey."""
  if not picture.has_transparency_data:
    return picture.convert("RGB")
  picture = picture.convert("RGBA")
  ground = Image.new("RGBA", picture.size, (*_GREY, 255))
  return Image.alpha_composite(ground, picture).convert("RGB")
