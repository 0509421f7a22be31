import jax.numpy as jnp
import pytest

from data_pipelines.clip import LABELS_OF_KIND
from lpm_jax.models.identity import ReferenceOffsets


def indices(offsets: ReferenceOffsets) -> list[int]:
  return [
    int(offsets(jnp.array(kind), jnp.array(label)))
    for kind, labels in enumerate(LABELS_OF_KIND)
    for label in range(labels)
  ]


@pytest.mark.parametrize("offsets", [ReferenceOffsets(), ReferenceOffsets((200, 300, 400), 3)])
def test_every_kind_and_label_has_a_place_of_its_own_outside_the_longest_clip(offsets):
  found = indices(offsets)
  assert len(set(found)) == len(found) == 13
  assert min(found) > 8 * 6  # 8 s are 49 latent frames


def test_an_index_is_the_start_of_the_kind_and_a_stride_for_each_label():
  offsets = ReferenceOffsets((50, 100, 200), stride=7)
  found = offsets(jnp.array([[0, 1, 2, 2]]), jnp.array([[0, 3, 0, 2]]))
  assert found.tolist() == [[50, 121, 200, 214]]


def test_an_empty_slot_has_an_index_too():
  assert ReferenceOffsets()(jnp.array([[-1]]), jnp.array([[0]])).shape == (1, 1)
