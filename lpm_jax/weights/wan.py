"""Layouts of Wan2.1's transformer and autoencoder, as published by its makers and by diffusers.

Sources: Wan2.1 `wan/modules/{model,vae}.py`; diffusers `transformer_wan.py`,
`autoencoder_kl_wan.py`. LPM keeps neither the CLIP branch of the image-to-video model nor the 20
input channels of its mask and picture (facts on LPM 1.0: section 3.1).
"""

from lpm_jax.models.transformer import TransformerConfig
from lpm_jax.models.vae import VAEConfig
from lpm_jax.weights.layout import Entry, linear, norm

LAYOUTS = ("diffusers", "original")

# Per-channel mean and deviation of the latents of Wan2.1's autoencoder: constants of its code.
LATENT_MEAN = (
  -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
  0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
  2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
  3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

_NAMES = {
  "diffusers": dict(
    text=("condition_embedder.text_embedder.linear_1", "condition_embedder.text_embedder.linear_2"),
    time=("condition_embedder.time_embedder.linear_1", "condition_embedder.time_embedder.linear_2"),
    project="condition_embedder.time_proj",
    head="proj_out",
    head_table="scale_shift_table",
    table="scale_shift_table",
    attentions=("attn1", "attn2"),
    qkvo=("to_q", "to_k", "to_v", "to_out.0"),
    norms=("norm_q", "norm_k"),
    cross_norm="norm2",
    feed=("ffn.net.0.proj", "ffn.net.2"),
  ),
  "original": dict(
    text=("text_embedding.0", "text_embedding.2"),
    time=("time_embedding.0", "time_embedding.2"),
    project="time_projection.1",
    head="head.head",
    head_table="head.modulation",
    table="modulation",
    attentions=("self_attn", "cross_attn"),
    qkvo=("q", "k", "v", "o"),
    norms=("norm_q", "norm_k"),
    cross_norm="norm3",
    feed=("ffn.0", "ffn.2"),
  ),
}
_OURS = (("query", "key", "value", "out"), ("query", "text_key", "text_value", "text_out"))
_DROPPED = (
  "condition_embedder.image_embedder.", "img_emb.", ".add_k_proj.", ".add_v_proj.",
  ".norm_added_k.", ".norm_added_q.", ".k_img.", ".v_img.", ".norm_k_img.",
)  # fmt: skip


def dropped(name: str) -> bool:
  """Whether a tensor belongs to the CLIP branch, which LPM does without."""
  return any(part in f".{name}" or name.startswith(part) for part in _DROPPED)


def transformer_layout(
  config: TransformerConfig, layout: str = "diffusers", *, inputs: int | None = None
) -> list[Entry]:
  """Entries of Wan2.1's transformer for a `VideoTransformer`; its audio branch is not among them.

  Args:
    config: sizes.
    layout: whose names, one of LAYOUTS.
    inputs: input channels of the public model, by default as many as ours. The image-to-video model
      has 36: first the 16 of the noisy latents, which are kept, then mask and picture.

  Raises ValueError for an unknown layout.
  """
  names = _layout_names(layout)
  kept = None if inputs in (None, config.channels) else (1, config.channels, inputs)
  patch = (("p", config.patch[0]), ("q", config.patch[1]))
  entries = [
    Entry("patch_embedding.weight", "patch_in/kernel", "d c 1 p q -> (p q c) d", None, patch, kept),
    Entry("patch_embedding.bias", "patch_in/bias"),
    *linear(names["text"][0], "text_up"),
    *linear(names["text"][1], "text_down"),
    *linear(names["time"][0], "timestep/first"),
    *linear(names["time"][1], "timestep/second"),
    *linear(names["project"], "timestep/project"),
    *linear(names["head"], "head"),
    Entry(names["head_table"], "head_modulation", "1 n d -> n d"),
  ]
  for layer in range(config.layers):
    entries += _block(names, f"blocks.{layer}", ("speak", "listen")[layer % 2], layer // 2)
  return entries


def _block(names: dict, source: str, kind: str, pair: int) -> list[Entry]:
  target = f"pairs/{kind}"
  entries = [
    Entry(f"{source}.{names['table']}", f"{target}/modulation", "1 n d -> n d", pair),
    *norm(f"{source}.{names['cross_norm']}", f"{target}/cross_norm", pair),
    *linear(f"{source}.{names['feed'][0]}", f"{target}/feed_forward/up", pair),
    *linear(f"{source}.{names['feed'][1]}", f"{target}/feed_forward/down", pair),
  ]
  modules = ("self_attention", "cross_attention")
  for theirs, module, ours in zip(names["attentions"], modules, _OURS, strict=True):
    for there, here in zip(names["qkvo"], ours, strict=True):
      entries += linear(f"{source}.{theirs}.{there}", f"{target}/{module}/{here}", pair)
    for there, here in zip(names["norms"], ours[:2], strict=True):
      path = f"{target}/{module}/{here}_norm"
      entries += norm(f"{source}.{theirs}.{there}", path, pair, bias=False)
  return entries


def _layout_names(layout: str) -> dict:
  if layout not in LAYOUTS:
    raise ValueError(f"layout: found {layout!r}, expected one of {LAYOUTS}")
  return _NAMES[layout]


_VIDEO = "o i t h w -> t h w i o"
_PICTURE = "o i h w -> h w i o"
_TIME = "o i t 1 1 -> t i o"
_POINT = "o i 1 1 1 -> i o"
_PIXEL = "o i 1 1 -> i o"


def vae_layout(config: VAEConfig, layout: str = "diffusers") -> list[Entry]:
  """Entries of Wan2.1's autoencoder for a `VideoVAE`; latent statistics are not stored with it.

  Raises ValueError for an unknown layout.
  """
  _layout_names(layout)
  naming = _Diffusers if layout == "diffusers" else _Original
  stages = len(config.multipliers)
  entries = [
    *_conv(naming.quant, "quant", _POINT),
    *_conv(naming.post_quant, "post_quant", _POINT),
  ]
  for part, blocks in (("encoder", config.blocks), ("decoder", config.blocks + 1)):
    temporal = config.temporal if part == "encoder" else config.temporal[::-1]
    entries += _conv(f"{part}.{naming.conv_in}", f"{part}/conv_in", _VIDEO)
    entries += _residual(naming, f"{part}.{naming.middle[0]}", f"{part}/middle/block_1", False)
    entries += _attention(f"{part}.{naming.middle[1]}", f"{part}/middle/attention")
    entries += _residual(naming, f"{part}.{naming.middle[2]}", f"{part}/middle/block_2", False)
    entries.append(_gamma(f"{part}.{naming.head[0]}", f"{part}/head/norm"))
    entries += _conv(f"{part}.{naming.head[1]}", f"{part}/head/conv", _VIDEO)
    for stage in range(stages):
      target = f"{part}/stages/{stage}"
      for block in range(blocks):
        source = naming.block(part, stage, block, blocks)
        shortcut = block == 0 and _widens(config, part, stage)
        entries += _residual(naming, source, f"{target}/blocks/{block}", shortcut)
      if stage < stages - 1:
        source = naming.resample(part, stage, blocks)
        entries += _conv(f"{source}.resample.1", f"{target}/resample/resample", _PICTURE)
        if temporal[stage]:
          entries += _conv(f"{source}.time_conv", f"{target}/resample/time_conv", _TIME)
  return entries


class _Diffusers:
  """Names of diffusers: down blocks in one list, up blocks by stage."""

  quant, post_quant = "quant_conv", "post_quant_conv"
  conv_in, head = "conv_in", ("norm_out", "conv_out")
  middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
  residual = ("norm1", "conv1", "norm2", "conv2", "conv_shortcut")

  @staticmethod
  def block(part: str, stage: int, block: int, blocks: int) -> str:
    if part == "encoder":
      return f"encoder.down_blocks.{stage * (blocks + 1) + block}"
    return f"decoder.up_blocks.{stage}.resnets.{block}"

  @staticmethod
  def resample(part: str, stage: int, blocks: int) -> str:
    if part == "encoder":
      return f"encoder.down_blocks.{stage * (blocks + 1) + blocks}"
    return f"decoder.up_blocks.{stage}.upsamplers.0"


class _Original:
  """Names of the makers: everything in numbered lists."""

  quant, post_quant = "conv1", "conv2"
  conv_in, head = "conv1", ("head.0", "head.2")
  middle = ("middle.0", "middle.1", "middle.2")
  residual = ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut")

  @staticmethod
  def block(part: str, stage: int, block: int, blocks: int) -> str:
    sampler = "downsamples" if part == "encoder" else "upsamples"
    return f"{part}.{sampler}.{stage * (blocks + 1) + block}"

  @staticmethod
  def resample(part: str, stage: int, blocks: int) -> str:
    return _Original.block(part, stage, blocks, blocks)


def _widens(config: VAEConfig, part: str, stage: int) -> bool:
  """Whether the first block of a stage changes the width and so has a shortcut of its own."""
  widths = config.widths
  if part == "encoder":
    return widths[max(stage - 1, 0)] != widths[stage]
  widths = widths[::-1]
  return stage > 0 and widths[stage - 1] // 2 != widths[stage]


def _conv(source: str, target: str, axes: str) -> list[Entry]:
  return [
    Entry(f"{source}.weight", f"{target}/kernel", axes),
    Entry(f"{source}.bias", f"{target}/bias"),
  ]


def _gamma(source: str, target: str, axes: str = "c 1 1 1 -> c") -> Entry:
  return Entry(f"{source}.gamma", f"{target}/gamma", axes)


def _attention(source: str, target: str) -> list[Entry]:
  return [
    _gamma(f"{source}.norm", f"{target}/norm", "c 1 1 -> c"),
    *_conv(f"{source}.to_qkv", f"{target}/to_qkv", _PIXEL),
    *_conv(f"{source}.proj", f"{target}/proj", _PIXEL),
  ]


def _residual(naming: type, source: str, target: str, shortcut: bool) -> list[Entry]:
  norm_1, conv_1, norm_2, conv_2, short = (f"{source}.{name}" for name in naming.residual)
  entries = [
    _gamma(norm_1, f"{target}/norm_1"),
    *_conv(conv_1, f"{target}/conv_1", _VIDEO),
    _gamma(norm_2, f"{target}/norm_2"),
    *_conv(conv_2, f"{target}/conv_2", _VIDEO),
  ]
  return entries + (_conv(short, f"{target}/shortcut", _POINT) if shortcut else [])
