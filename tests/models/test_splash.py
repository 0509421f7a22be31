"""The splash kernel, interpreted, against dense attention."""

import jax
import numpy as np
import pytest

from lpm_jax.models.attention import attend
from lpm_jax.models.splash import splash_attend


@pytest.mark.parametrize(("queries", "keys"), [(100, 300), (1200, 2500)])
def test_equals_dense_attention(queries, keys):
  """Lengths that are no multiple of a block; a third of the keys is not looked at."""
  draw = jax.random.split(jax.random.key(0), 4)
  query = jax.random.normal(draw[0], (2, queries, 2, 128))
  key, value = (jax.random.normal(k, (2, keys, 2, 128)) for k in draw[1:3])
  seen = jax.random.bernoulli(draw[3], 0.6, (2, keys))
  expected = attend(query, key, value, mask=seen[:, None, None])
  found = splash_attend(query * 128**-0.5, key, value, seen, interpret=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_mask_of_rows_is_refused():
  x = jax.numpy.zeros((1, 8, 1, 128))
  mask = jax.numpy.ones((1, 1, 8, 8), bool)
  with pytest.raises(ValueError, match="splash attention"):
    attend(x, x, x, mask=mask, kernel="splash")
