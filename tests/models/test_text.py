import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpm_jax.models.text import VOCABULARY, TextConfig, TextEncoder, tokenize

GOLDEN = [1595, 1615, 579, 1644, 308, 1306, 0, 0]
CONFIG = TextConfig(width=8, heads=2, layers=1, length=6)


def make_encoder() -> TextEncoder:
  return TextEncoder(CONFIG, rngs=nnx.Rngs(0))


def test_tokens_are_stable_across_processes_and_ignore_case():
  assert tokenize("Looks left, then smiles.", 8).tolist() == GOLDEN
  assert tokenize("LOOKS left,then  smiles .", 8).tolist() == GOLDEN


def test_tokens_are_padded_with_zeros_and_cut():
  assert tokenize("", 4).tolist() == [0, 0, 0, 0]
  assert tokenize("nods", 3)[1:].tolist() == [0, 0]
  assert tokenize("a b c d e", 3).tolist() == tokenize("a b c", 3).tolist()
  many = tokenize(" ".join(map(str, range(5000))), 5000)
  assert many.min() >= 1 and many.max() < VOCABULARY


def test_padding_changes_no_token_and_comes_out_as_zeros():
  encoder = make_encoder()
  short = encoder(jnp.asarray(tokenize("looks left", 2))[None])
  padded = encoder(jnp.asarray(tokenize("looks left", 6))[None])
  np.testing.assert_allclose(padded[:, :2], short, atol=1e-5)
  np.testing.assert_array_equal(padded[:, 2:], 0.0)


def test_word_order_matters():
  encoder = make_encoder()
  texts = ("smiles then nods", "nods then smiles")
  first, second = (encoder(jnp.asarray(tokenize(text, 6))[None]) for text in texts)
  assert np.abs(first.sum(axis=1) - second.sum(axis=1)).max() > 1e-3


def test_the_empty_text_is_zeros_and_not_the_null():
  encoder = make_encoder()
  empty = encoder(jnp.zeros((1, 6), jnp.int32))
  np.testing.assert_array_equal(empty, 0.0)
  assert np.abs(encoder.null[...]).max() > 0


def test_a_text_that_is_too_long_is_named():
  with pytest.raises(ValueError, match="text_tokens: 7 tokens, at most 6"):
    make_encoder()(jnp.zeros((1, 7), jnp.int32))
