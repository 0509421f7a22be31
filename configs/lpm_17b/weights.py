"""Public checkpoints in and out: Wan2.1, umT5-xxl and wav2vec 2.0.

  CONFIG=configs/lpm_17b/weights.py:i2v_14b
  lpm weights import --config=$CONFIG --config.source=FOLDER --workdir=weights/wan
  lpm weights check --config=$CONFIG --config.source=FOLDER --workdir=weights/wan
  lpm weights export --config=$CONFIG --config.weights=RUN --workdir=exported

Presets: t2v_1b, t2v_14b, i2v_14b, vae, umt5, wav2vec2_base, wav2vec2_large.
"""

from ml_collections import ConfigDict

_WAN = dict(kind="transformer", inputs=None)
_14B = dict(
  width=5120, heads=40, layers=40, hidden=13824, text_width=4096, audio_width=5120, dtype="bfloat16"
)
_1B = dict(_14B, width=1536, heads=12, layers=30, hidden=8960, audio_width=1536)
_LARGE = dict(layer_norm=True, width=1024, heads=16, hidden=4096, layers=24)
_PRESETS = {
  "t2v_1b": dict(_WAN, model=_1B),
  "t2v_14b": dict(_WAN, model=_14B),
  "i2v_14b": dict(_WAN, model=_14B, inputs=36),
  "vae": dict(kind="vae", model={}),
  "umt5": dict(kind="umt5", model={}),
  "wav2vec2_base": dict(kind="wav2vec2", model={}),
  "wav2vec2_large": dict(kind="wav2vec2", model=_LARGE),
}


def get_config(arg: str | None = None) -> ConfigDict:
  """One public model; `arg` is a preset."""
  if arg not in _PRESETS:
    raise ValueError(
      f"configs/lpm_17b/weights.py: found :{arg}, expected one of {', '.join(_PRESETS)}"
    )
  preset = _PRESETS[arg]
  c = ConfigDict()

  # model
  c.kind = preset["kind"]
  c.model = ConfigDict(preset["model"])
  c.inputs = preset.get("inputs") or 0  # input channels of the public model; 0: as many as ours

  # import, check
  c.source = ""  # a .safetensors file, an index, a .pth, or the folder of one of these
  c.layout = ""  # "": the one whose names are found

  # export
  c.weights = ""  # an import, a folder with base.safetensors or vae.safetensors, or a run's workdir
  c.average = True  # of a run: the moving average, not the last parameters
  c.dtype = "stored"  # "stored", "float32" or "bfloat16"
  return c
