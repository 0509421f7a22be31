"""Layouts of public checkpoints: both namings cover the same parameters, errors name the tensor."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.umt5 import UMT5Config
from lpm_jax.models.vae import VAEConfig
from lpm_jax.weights import encoders, layout, wan
from lpm_jax.weights.shipped import WeightsError, flat_state

TRUNK = TransformerConfig(width=24, heads=2, layers=2, hidden=32, text_width=8, audio_width=8)


def _places(entries: list[layout.Entry]) -> set:
  return {dataclasses.replace(entry, source="") for entry in entries}


@pytest.mark.parametrize(
  "make, config, other",
  [
    (wan.transformer_layout, TRUNK, "diffusers"),
    (wan.vae_layout, VAEConfig(), "diffusers"),
    (encoders.umt5_layout, UMT5Config(layers=2), "transformers"),
  ],
)
def test_both_namings_fill_the_same_places_once(make, config, other):
  original, public = make(config, "original"), make(config, other)
  assert _places(original) == _places(public)
  for entries in (original, public):
    assert len({e.source for e in entries}) == len(_places(entries)) == len(entries)
  with pytest.raises(ValueError, match="layout: found 'else'"):
    make(config, "else")


@pytest.fixture(scope="module")
def trunk() -> VideoTransformer:
  return nnx.eval_shape(lambda: VideoTransformer(TRUNK, rngs=nnx.Rngs(0)))


def _shapes(trunk: VideoTransformer) -> dict[str, tuple[int, ...]]:
  state = flat_state(trunk)
  return {e.source: e.shape(state[e.target].shape) for e in wan.transformer_layout(TRUNK)}


def _check(trunk: VideoTransformer, shapes: dict) -> layout.Differences:
  entries = wan.transformer_layout(TRUNK)
  return layout.check(entries, trunk, shapes, dropped=wan.dropped, where="x.safetensors")


def test_the_clip_branch_is_dropped_and_the_audio_branch_is_new(trunk):
  name = "blocks.0.attn2.add_k_proj.weight"
  found = _check(trunk, {**_shapes(trunk), name: (24, 24)})
  assert found.dropped == {name: (24, 24)}
  assert len(found.new) == 12  # audio K and V with biases, K norm, O, in either kind of block
  assert "dropped: 1 tensors, 576 parameters" in found.summary()
  assert "blocks.*.attn2.add_k_proj.weight" in found.summary()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"head.weight": (1, 1)}, "head.weight: not known"),
    ({"proj_out.weight": (3, 24)}, "proj_out.weight: found shape"),
    ({"proj_out.weight": None}, "proj_out.weight: missing"),
  ],
)
def test_a_tensor_that_does_not_fit_is_named(trunk, change, message):
  shapes = {n: s for n, s in {**_shapes(trunk), **change}.items() if s is not None}
  with pytest.raises(WeightsError, match=f"x.safetensors: {message}"):
    _check(trunk, shapes)


def test_patches_keep_their_order():
  """Public kernel [D, C, 1, p, q]; ours takes a token's pixels in (p, q, C) order."""
  entry = next(e for e in wan.transformer_layout(TRUNK) if e.source == "patch_embedding.weight")
  kernel = np.arange(24 * 16 * 4, dtype=np.float32).reshape(24, 16, 1, 2, 2)
  ours = entry.imported(kernel)
  assert ours[(1 * 2 + 0) * 16 + 5, 7] == kernel[7, 5, 0, 1, 0]
  np.testing.assert_array_equal(entry.exported(ours), kernel)
