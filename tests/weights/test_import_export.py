"""Public checkpoints in and out: bit-equal, resumable, bounded; bad ones are named and refused."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from configs.lpm_17b.weights import get_config
from lpm_jax.models.audio import AudioConfig
from lpm_jax.models.lpm import LPM, LPMConfig
from lpm_jax.models.text import TextConfig
from lpm_jax.models.transformer import TransformerConfig
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.training.checkpoints import Checkpoints
from lpm_jax.training.state import create_state
from lpm_jax.weights import loading, shipped, store, wan
from lpm_jax.weights.exporting import export_weights
from lpm_jax.weights.importing import check_weights, import_weights
from lpm_jax.weights.shipped import WeightsError, flat_state
from tests.children import with_devices

SIZES = dict(width=16, heads=2, layers=4, hidden=24, text_width=8, audio_width=8)
TRUNK = TransformerConfig(**SIZES)
SMALL = LPMConfig(
  transformer=TRUNK,
  audio=AudioConfig(width=8, bands=8, dilations=(1,)),
  text=TextConfig(width=8, heads=2, layers=1, length=4),
)
STEM = "diffusion_pytorch_model"


def _config(source, **values) -> ConfigDict:
  config = get_config("t2v_1b")
  config.model = ConfigDict(SIZES)
  config.update(source=str(source), **values)
  return config


def _lpm(seed: int = 0) -> LPM:
  """A model in which no parameter is zero."""
  model = LPM(SMALL, rngs=nnx.Rngs(seed))
  rng = np.random.default_rng(seed)
  for leaf in flat_state(model).values():
    leaf[...] = jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
  return model


def _public_tensors(inputs: int = 16) -> dict[str, np.ndarray]:
  rng, state = np.random.default_rng(0), flat_state(_lpm().transformer)
  return {
    e.source: rng.normal(size=e.shape(state[e.target].shape)).astype(ml_dtypes.bfloat16)
    for e in wan.transformer_layout(TRUNK, inputs=inputs)
  }


def _write(folder: pathlib.Path, tensors: dict, shards: int = 2) -> pathlib.Path:
  folder.mkdir(exist_ok=True)
  names, places = list(tensors), {}
  for i in range(shards):
    file = f"{STEM}-{i + 1:05d}-of-{shards:05d}.safetensors"
    part = {name: tensors[name] for name in names[i::shards]}
    save_file(part, folder / file)
    places |= dict.fromkeys(part, file)
  index = {"metadata": {}, "weight_map": places}
  (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
  return folder


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
  return _write(tmp_path / "public", _public_tensors())


def _exported(folder: pathlib.Path) -> dict[str, np.ndarray]:
  return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def _assert_same(found: dict, expected: dict):
  assert set(found) == set(expected)
  for name, tensor in expected.items():
    assert found[name].dtype == tensor.dtype, name
    np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_an_untouched_import_exports_to_the_identical_tensors(source, tmp_path, monkeypatch):
  monkeypatch.setattr(store, "PART_BYTES", 4_000)
  import_weights(_config(source), tmp_path / "ours")
  export_weights(_config("", weights=str(tmp_path / "ours")), tmp_path / "out")
  _assert_same(_exported(tmp_path / "out/transformer"), _public_tensors())
  manifest = json.loads((tmp_path / "ours/transformer/manifest.json").read_text())
  assert manifest["parts"] > 3
  assert all(len(t["sha256"]) == 64 and t["file"].startswith(STEM) for t in manifest["tensors"])
  check_weights(_config(source), tmp_path / "ours")


def test_a_model_starts_from_an_import_and_keeps_what_is_new(source, tmp_path):
  import_weights(_config(source), tmp_path / "ours")
  model, before = _lpm(1), {n: np.asarray(x[...]) for n, x in flat_state(_lpm(1)).items()}
  loading.initialiser(tmp_path / "ours", "base")(model)
  tensors, filled = _public_tensors(), set()
  after = flat_state(model)
  for entry in wan.transformer_layout(TRUNK):
    value = after[f"transformer/{entry.target}"][...]
    value = value if entry.index is None else value[entry.index]
    np.testing.assert_array_equal(value, entry.imported(tensors[entry.source]).astype(np.float32))
    filled.add(f"transformer/{entry.target}")
  new = set(before) - filled
  assert any("audio" in name for name in new)
  for name in new:
    np.testing.assert_array_equal(after[name][...], before[name])


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
from flax import nnx
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.parallel.sharding import tree_shardings
from lpm_jax.weights import loading
from lpm_jax.weights.shipped import flat_state
from tests.weights.test_import_export import TRUNK

plain, sharded = (VideoTransformer(TRUNK, rngs=nnx.Rngs(1)) for _ in range(2))
mesh = make_mesh(dict(data=1, fsdp=4, tensor=2))
graphdef, state = nnx.split(sharded)
rules = dict(embed="fsdp", mlp="tensor", heads="tensor")
sharded = nnx.merge(graphdef, jax.device_put(state, tree_shardings(state, mesh, rules)))
shardings = {name: leaf[...].sharding for name, leaf in flat_state(sharded).items()}
assert any(not s.is_fully_replicated for s in shardings.values())
before = np.asarray(plain.patch_in.kernel[...])
for model in (plain, sharded):
  loading.initialiser(sys.argv[1], "base")(model)
assert (np.asarray(plain.patch_in.kernel[...]) != before).all()
expected = flat_state(plain)
for name, leaf in flat_state(sharded).items():
  assert leaf[...].sharding == shardings[name], name
  np.testing.assert_array_equal(leaf[...], expected[name][...])
"""


def test_on_a_mesh_every_device_gets_its_piece(source, tmp_path):
  import_weights(_config(source), tmp_path / "ours")
  subprocess.run(
    [sys.executable, "-c", ON_EIGHT_DEVICES, str(tmp_path / "ours")],
    env=with_devices(8),
    cwd=pathlib.Path(__file__).parents[2],
    check=True,
  )


def test_a_killed_import_continues_and_a_whole_one_is_left_alone(source, tmp_path, monkeypatch):
  monkeypatch.setattr(store, "PART_BYTES", 4_000)
  write, written = store.write_part, []

  def dies_at_the_third(path, tensors):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(path.name)
    write(path, tensors)

  monkeypatch.setattr(store, "write_part", dies_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    import_weights(_config(source), tmp_path / "ours")
  with pytest.raises(WeightsError, match="no such weights file"):  # not yet an import
    loading.initialiser(tmp_path / "ours", "base")

  monkeypatch.setattr(
    store, "write_part", lambda path, t: (written.append(path.name), write(path, t))
  )
  import_weights(_config(source), tmp_path / "ours")
  assert len(written) == len(set(written))
  count = len(written)
  import_weights(_config(source), tmp_path / "ours")
  assert len(written) == count
  check_weights(_config(source), tmp_path / "ours")


def test_a_folder_keeps_its_import(source, tmp_path):
  import_weights(_config(source), tmp_path / "ours")
  tensors = _public_tensors()
  other = _write(tmp_path / "other", tensors, shards=1)
  with pytest.raises(WeightsError, match="holds an import of another checkpoint"):
    import_weights(_config(other), tmp_path / "ours")
  check_weights(_config(other), tmp_path / "ours")  # other files, same tensors
  name = "blocks.1.attn1.to_q.weight"
  tensors[name] = tensors[name] + ml_dtypes.bfloat16(1)
  with pytest.raises(WeightsError, match=f"1 tensors differ; .*{name}: not the tensor that was"):
    check_weights(_config(_write(other, tensors, shards=1)), tmp_path / "ours")


def test_image_to_video_loses_its_mask_its_picture_and_its_clip_branch(tmp_path, capsys):
  tensors = _public_tensors(inputs=36)
  clip = {"blocks.0.attn2.add_k_proj.weight": np.ones((16, 16), ml_dtypes.bfloat16)}
  source = _write(tmp_path / "i2v", tensors | clip)
  import_weights(_config(source, inputs=36), tmp_path / "ours")
  printed = capsys.readouterr().out
  assert "dropped: 2 tensors, 1,536 parameters" in printed
  assert "patch_embedding.weight[:, 16:]" in printed
  export_weights(_config("", weights=str(tmp_path / "ours"), inputs=36), tmp_path / "out")
  name = "patch_embedding.weight"
  _assert_same(_exported(tmp_path / "out/transformer"), tensors | {name: tensors[name][:, :16]})
  with pytest.raises(WeightsError, match=r"patch_embedding.weight: found shape \(16, 36"):
    import_weights(_config(source), tmp_path / "theirs")
  check_weights(_config(source, inputs=36), tmp_path / "ours")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_model_comes_back_bit_equal(dtype, tmp_path):
  model = _lpm(3)
  if dtype == "bfloat16":
    for leaf in flat_state(model).values():
      leaf[...] = leaf[...].astype(jnp.bfloat16).astype(leaf.dtype)
  shipped.save_module(tmp_path / "w/base.safetensors", model, config={}, dtype="float32")
  export_weights(_config("", weights=str(tmp_path / "w"), dtype=dtype), tmp_path / "out")
  import_weights(_config(tmp_path / "out/transformer"), tmp_path / "again")
  again = _lpm(4)
  loading.initialiser(tmp_path / "again", "base")(again)
  for name, leaf in flat_state(model.transformer).items():
    np.testing.assert_array_equal(flat_state(again.transformer)[name][...], leaf[...])
  with pytest.raises(WeightsError, match="not empty"):
    export_weights(_config("", weights=str(tmp_path / "w"), dtype=dtype), tmp_path / "out")


def test_a_run_exports_its_average_or_its_last_parameters(tmp_path):
  state = create_state(_lpm(5), optax.sgd(0.1))
  state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
  checkpoints = Checkpoints(tmp_path / "run", "{}", keep=1)
  checkpoints.save(7, state, {})
  checkpoints.close()
  found = {}
  for average in (True, False):
    config = _config("", weights=str(tmp_path / "run"), average=average)
    export_weights(config, tmp_path / f"out{average}")
    found[average] = _exported(tmp_path / f"out{average}/transformer")
  expected = flat_state(_lpm(5).transformer)["pairs/listen/feed_forward/up/kernel"][1].T
  np.testing.assert_array_equal(found[False]["blocks.3.ffn.net.0.proj.weight"], expected)
  for name, tensor in found[False].items():
    np.testing.assert_array_equal(found[True][name], tensor + 1)


def test_an_autoencoder_comes_back_with_its_statistics(tmp_path):
  sizes = dict(base=4, multipliers=(1, 2), temporal=(True,), blocks=1, latent_channels=4)
  vae = VideoVAE(VAEConfig(**sizes), rngs=nnx.Rngs(0))
  vae.latent_mean[...], vae.latent_std[...] = jnp.arange(4.0), jnp.arange(4.0) + 1
  shipped.save_module(tmp_path / "w/vae.safetensors", vae, config=sizes, dtype="float32")
  config = get_config("vae")
  config.update(weights=str(tmp_path / "w"), source=str(tmp_path / "out/vae"))
  config.model = ConfigDict(sizes)
  export_weights(config, tmp_path / "out")
  import_weights(config, tmp_path / "again")
  again = flat_state(loading.load_vae(tmp_path / "again"))
  for name, leaf in flat_state(vae).items():
    np.testing.assert_array_equal(again[name][...], leaf[...])


def _break(folder: pathlib.Path, how: str):
  """Damages a sharded checkpoint; the tensor it concerns lies in the first shard."""
  tensors, name = _public_tensors(), "patch_embedding.weight"
  first = folder / f"{STEM}-00001-of-00002.safetensors"
  if how == "missing":
    _write(folder, {k: v for k, v in tensors.items() if k != name})
  elif how == "extra":
    _write(folder, tensors | {"blocks.0.gate": np.ones(3, np.float32)})
  elif how == "shape":
    _write(folder, tensors | {name: tensors[name][:, :15]})
  elif how == "dtype":
    _write(folder, tensors | {name: np.zeros(tensors[name].shape, np.int64)})
  elif how == "truncated":
    first.write_bytes(first.read_bytes()[:-100])
  elif how == "header":
    first.write_bytes(first.read_bytes()[:20])
  elif how == "absent":
    first.unlink()
  elif how == "another index":
    save_file({"x": np.zeros(1, np.float32)}, first)
  elif how == "another model":
    for file in folder.iterdir():
      file.unlink()
    save_file({"conv.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
  "how, message",
  [
    ("missing", r"index\.json: patch_embedding\.weight: missing"),
    ("extra", r"index\.json: blocks\.0\.gate: not known"),
    ("shape", r"index\.json: patch_embedding\.weight: found shape \(16, 15"),
    ("dtype", r"00001-of-00002\.safetensors: patch_embedding\.weight: found dtype I64"),
    ("truncated", r"00001-of-00002\.safetensors: .*: cut off"),
    ("header", r"00001-of-00002\.safetensors: its header is damaged or cut"),
    ("absent", r"names diffusion_pytorch_model-00001-of-00002\.safetensors, which is absent"),
    ("another index", r"00001-of-00002\.safetensors: .*: missing, though"),
    ("another model", r"model\.safetensors: another model: none of the"),
  ],
)
def test_a_bad_checkpoint_is_named_and_nothing_is_written(how, message, source, tmp_path):
  _break(source, how)
  with pytest.raises(WeightsError, match=message):
    import_weights(_config(source), tmp_path / "ours")
  assert not (tmp_path / "ours").exists()


def test_a_damaged_part_is_named(source, tmp_path):
  import_weights(_config(source), tmp_path / "ours")
  for file in (tmp_path / "ours/transformer/parts/0000").rglob("*"):
    if file.is_file() and file.parent.name == "d":
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(WeightsError, match="parts/0000: damaged or missing"):
    loading.initialiser(tmp_path / "ours", "base")(_lpm())
