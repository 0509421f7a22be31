"""Picture files -> square uint8 pictures."""

import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lpm_jax.media.files import MediaError, Path, check_readable

PICTURE = "a picture (png, jpeg, webp, ...)"
_GREY = (128, 128, 128)


def read_picture(path: Path, size: int) -> np.ndarray:
  """A picture of any shape and mode: uint8 [size, size, 3].

  Turned as its EXIF data says, transparent parts over grey, the centre square cut out and resized. Raises
  MediaError for a file that is missing, empty, damaged or no picture.
  """
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
  return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))


def _over_grey(picture: Image.Image) -> Image.Image:
  """RGB; what is transparent shows grey."""
  if not picture.has_transparency_data:
    return picture.convert("RGB")
  picture = picture.convert("RGBA")
  ground = Image.new("RGBA", picture.size, (*_GREY, 255))
  return Image.alpha_composite(ground, picture).convert("RGB")
