"""Texts -> tokens of umT5, cleaned as Wan2.1 cleans them.

Source: Wan2.1 `wan/modules/tokenizers.py` ("whitespace" cleaning, 512 tokens) over the published
`tokenizer.json` of google/umt5-xxl.
"""

import html
import os

import ftfy
import numpy as np
from tokenizers import Tokenizer

LENGTH = 512
PADDING, END = 0, 1


def clean(text: str) -> str:
  """Repairs broken Unicode, resolves HTML entities (also doubly escaped), joins white space."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return " ".join(text.split())


class UMT5Tokenizer:
  """Texts -> int32 [L], the end token after the text, then padding.

  Args:
    path: the published tokenizer.json.
    length: tokens L of every text; a longer one is cut and still ends with the end token.

  Raises:
    ValueError: not a tokenizer file, or one whose padding and end tokens are not umT5's.
  """

  def __init__(self, path: str | os.PathLike, length: int = LENGTH):
    try:
      self._tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises plain Exception for a missing or broken file
      raise ValueError(f"{path}: not a tokenizer.json: {error}") from error
    found = tuple(self._tokenizer.token_to_id(token) for token in ("<pad>", "</s>"))
    if found != (PADDING, END):
      raise ValueError(f"{path}: <pad>, </s> are {found}, expected {(PADDING, END)}: not umT5's")
    self._tokenizer.enable_truncation(length)
    self._tokenizer.enable_padding(length=length, pad_id=PADDING, pad_token="<pad>")

  def __call__(self, text: str) -> np.ndarray:
    return np.asarray(self._tokenizer.encode(clean(text)).ids, np.int32)
