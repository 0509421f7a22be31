"""The public models that can be taken over: their configs, modules and layouts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from flax import nnx
from ml_collections import ConfigDict

from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.umt5 import UMT5Config, UMT5Encoder
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from lpm_jax.weights import encoders, wan
from lpm_jax.weights.layout import Entry, names_in_common
from lpm_jax.weights.shipped import WeightsError, config_from_dict


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of public model.

  Args:
    config: class of its sizes.
    build: build(config, rngs=...) makes the module here.
    layouts: name of a layout -> entries(config).
    dropped: whether a tensor that no entry names is left out on purpose.
    rename: from a name in the file to that of the layouts.
    constants: variables here that are constants of the public code.
  """

  config: type
  build: Callable[..., nnx.Module]
  layouts: Mapping[str, Callable[..., list[Entry]]]
  dropped: Callable[[str], bool]
  rename: Callable[[str], str] = str
  constants: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


KINDS = {
  "transformer": Kind(
    TransformerConfig,
    VideoTransformer,
    {name: functools.partial(wan.transformer_layout, layout=name) for name in wan.LAYOUTS},
    wan.dropped,
  ),
  "vae": Kind(
    VAEConfig,
    VideoVAE,
    {name: functools.partial(wan.vae_layout, layout=name) for name in wan.LAYOUTS},
    lambda name: False,
    constants={"latent_mean": wan.LATENT_MEAN, "latent_std": wan.LATENT_STD},
  ),
  "umt5": Kind(
    UMT5Config,
    UMT5Encoder,
    {n: functools.partial(encoders.umt5_layout, layout=n) for n in ("transformers", "original")},
    encoders.umt5_dropped,
  ),
  "wav2vec2": Kind(
    Wav2Vec2Config,
    Wav2Vec2Encoder,
    {
      "encoder": encoders.wav2vec2_layout,
      "with a head": functools.partial(encoders.wav2vec2_layout, prefix="wav2vec2."),
    },
    encoders.wav2vec2_dropped,
    encoders.wav2vec2_name,
  ),
}


@dataclasses.dataclass(frozen=True)
class PublicModel:
  """One public model: its kind and sizes.

  Attributes:
    kind: a key of KINDS.
    config: sizes of the module here.
    inputs: input channels of a public transformer that has more than ours; None otherwise.
  """

  kind: str
  config: object
  inputs: int | None = None

  def entries(self, layout: str) -> list[Entry]:
    """The entries of one of its layouts; ValueError for an unknown one."""
    layouts = KINDS[self.kind].layouts
    if layout not in layouts:
      raise ValueError(f"layout: found {layout!r}, expected one of {tuple(layouts)}")
    options = {"inputs": self.inputs} if self.inputs else {}
    return layouts[layout](self.config, **options)

  def detect(self, names: Mapping[str, object]) -> str:
    """The layout that shares most names with a checkpoint."""
    return max(
      KINDS[self.kind].layouts, key=lambda layout: names_in_common(self.entries(layout), names)
    )

  def abstract(self) -> nnx.Module:
    """The module without arrays."""
    build = KINDS[self.kind].build
    return nnx.eval_shape(lambda: build(self.config, rngs=nnx.Rngs(0)))


def public_model(config: ConfigDict) -> PublicModel:
  """The model of a config with `kind`, `model` (fields of the kind's config) and `inputs`."""
  if config.kind not in KINDS:
    raise WeightsError(f"kind: found {config.kind!r}, expected one of {tuple(KINDS)}")
  sizes = config_from_dict(KINDS[config.kind].config, config.model.to_dict())
  return PublicModel(config.kind, sizes, config.get("inputs") or None)
