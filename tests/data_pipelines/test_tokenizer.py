"""umT5's tokenizer: cleaned as Wan2.1 does, ended, padded, cut; a wrong file is refused."""

import numpy as np
import pytest

from data_pipelines.tokenizer import UMT5Tokenizer, clean
from tests.fixtures.small_tokenizer import save


def test_a_text_is_ended_and_padded(tmp_path):
  tokenizer = UMT5Tokenizer(save(tmp_path / "tokenizer.json"), length=6)
  tokens = tokenizer("she smiles.")
  assert tokens.dtype == np.int32
  np.testing.assert_array_equal(tokens, [3, 4, 9, 1, 0, 0])
  np.testing.assert_array_equal(tokenizer(""), [1, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(tokenizer("xyzzy")[-1], 0)


def test_a_long_text_is_cut_and_still_ended(tmp_path):
  tokenizer = UMT5Tokenizer(save(tmp_path / "tokenizer.json"), length=4)
  np.testing.assert_array_equal(tokenizer("she smiles then looks left"), [3, 4, 5, 1])


@pytest.mark.parametrize(
  "text, expected",
  [
    ("  she\n\tsmiles  ", "she smiles"),
    ("she &amp;amp; he", "she & he"),
    ("itâ€™s", "it's"),
    ("a &lt;b&gt; c", "a <b> c"),
  ],
)
def test_cleaning(text, expected):
  assert clean(text) == expected


def test_another_tokenizer_or_a_broken_file_is_refused(tmp_path):
  path = save(tmp_path / "other.json", special=("<unk>", "<pad>", "</s>"))
  with pytest.raises(ValueError, match=r"other\.json: <pad>, </s> are \(1, 2\), expected \(0, 1\)"):
    UMT5Tokenizer(path)
  (tmp_path / "cut.json").write_text("{")
  for name in ("cut.json", "absent.json"):
    with pytest.raises(ValueError, match=rf"{name}: not a tokenizer\.json"):
      UMT5Tokenizer(tmp_path / name)
