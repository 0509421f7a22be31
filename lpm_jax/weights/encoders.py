"""Layouts of the frozen encoders: umT5 and wav2vec 2.0.

Sources: transformers `modeling_umt5.py`, `modeling_wav2vec2.py`; Wan2.1 `wan/modules/t5.py`.
"""

from lpm_jax.models.umt5 import UMT5Config
from lpm_jax.models.wav2vec2 import Wav2Vec2Config
from lpm_jax.weights.layout import Entry, linear, norm

_UMT5 = {
  "transformers": dict(
    table="shared.weight",
    layer="encoder.block.{}",
    norm="layer.0.layer_norm",
    attention="layer.0.SelfAttention",
    position="layer.0.SelfAttention.relative_attention_bias.weight",
    feed_norm="layer.1.layer_norm",
    feed=("wi_0", "wi_1", "wo"),
    feed_forward="layer.1.DenseReluDense",
    last="encoder.final_layer_norm",
  ),
  "original": dict(
    table="token_embedding.weight",
    layer="blocks.{}",
    norm="norm1",
    attention="attn",
    position="pos_embedding.embedding.weight",
    feed_norm="norm2",
    feed=("gate.0", "fc1", "fc2"),
    feed_forward="ffn",
    last="norm",
  ),
}


def umt5_layout(config: UMT5Config, layout: str = "transformers") -> list[Entry]:
  """Entries of umT5's encoder for a `UMT5Encoder`, as transformers or Wan2.1 publish it.

  Raises ValueError for an unknown layout.
  """
  if layout not in _UMT5:
    raise ValueError(f"layout: found {layout!r}, expected one of {tuple(_UMT5)}")
  names = _UMT5[layout]
  entries = [Entry(names["table"], "table"), *norm(names["last"], "norm", bias=False)]
  for i in range(config.layers):
    source = names["layer"].format(i)
    entries += norm(f"{source}.{names['norm']}", "layers/norm", i, bias=False)
    entries += norm(f"{source}.{names['feed_norm']}", "layers/feed_norm", i, bias=False)
    entries.append(Entry(f"{source}.{names['position']}", "layers/position", index=i))
    for there, here in zip("qkvo", ("query", "key", "value", "out"), strict=True):
      path = f"{source}.{names['attention']}.{there}"
      entries += linear(path, f"layers/{here}", i, bias=False)
    for there, here in zip(names["feed"], ("gate", "up", "down"), strict=True):
      path = f"{source}.{names['feed_forward']}.{there}"
      entries += linear(path, f"layers/{here}", i, bias=False)
  return entries


def umt5_dropped(name: str) -> bool:
  """Whether a tensor is not the encoder's: the decoder, or a second copy of the table."""
  return name.startswith(("decoder.", "lm_head.")) or name == "encoder.embed_tokens.weight"


def wav2vec2_layout(config: Wav2Vec2Config, *, prefix: str = "") -> list[Entry]:
  """Entries of wav2vec 2.0 for a `Wav2Vec2Encoder`.

  Args:
    config: sizes.
    prefix: before every name: "wav2vec2." in checkpoints that carry a head.
  """
  entries = []
  for i in range(len(config.kernels)):
    source, target = f"feature_extractor.conv_layers.{i}", f"convolutions/{i}"
    entries.append(Entry(f"{source}.conv.weight", f"{target}/kernel", "o i k -> k i o"))
    if config.layer_norm:
      entries.append(Entry(f"{source}.conv.bias", f"{target}/bias"))
    if config.layer_norm or i == 0:
      entries += norm(f"{source}.layer_norm", f"{target}/norm")
  position = "encoder.pos_conv_embed.conv"
  entries += [
    *norm("feature_projection.layer_norm", "project_norm"),
    *linear("feature_projection.projection", "project"),
    Entry(f"{position}.weight_g", "position/gain", "1 1 k -> k"),
    Entry(f"{position}.weight_v", "position/direction", "o i k -> k i o"),
    Entry(f"{position}.bias", "position/bias"),
    *norm("encoder.layer_norm", "norm"),
  ]
  for i in range(config.layers):
    source = f"encoder.layers.{i}"
    for there, here in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
      entries += linear(f"{source}.attention.{there}_proj", f"layers/{here}", i)
    entries += norm(f"{source}.layer_norm", "layers/norm", i)
    entries += linear(f"{source}.feed_forward.intermediate_dense", "layers/up", i)
    entries += linear(f"{source}.feed_forward.output_dense", "layers/down", i)
    entries += norm(f"{source}.final_layer_norm", "layers/feed_norm", i)
  return [Entry(prefix + e.source, e.target, e.axes, e.index, e.sizes) for e in entries]


def wav2vec2_name(name: str) -> str:
  """The published name of a tensor that newer PyTorch calls by its parametrisation."""
  old = {"parametrizations.weight.original0": "weight_g"}
  old["parametrizations.weight.original1"] = "weight_v"
  for new, published in old.items():
    name = name.replace(new, published)
  return name


def wav2vec2_dropped(name: str) -> bool:
  """Whether a tensor serves only training or a head: masking, quantiser, projections, classes."""
  heads = ("quantizer.", "project_q.", "project_hid.", "lm_head.", "classifier.", "projector.")
  return name.endswith("masked_spec_embed") or name.startswith(heads)
