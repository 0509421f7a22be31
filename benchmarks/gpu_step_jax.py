"""Our side of `train_step_gpu.py`: one process, one line of JSON."""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file

from benchmarks.comparison import awakened
from benchmarks.train_step_gpu import AUDIO_TOKENS, TEXT_TOKENS, Case
from lpm_jax.models.conditions import Conditions
from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.weights import layout, wan

TIMESTEP = 0.5
LEARNING_RATE = 1e-5


def model_config(case: Case) -> TransformerConfig:
  """Sizes of the transformer; its audio branch is as wide as the model, as at the 17B scale."""
  return TransformerConfig(
    width=case.width,
    heads=case.heads,
    layers=case.layers,
    hidden=case.hidden,
    text_width=case.text_width,
    audio_width=case.width,
    remat="nothing_saveable" if case.remat else "none",
    dtype=case.dtype,
    attention=case.kernel,
  )


def make_inputs(case: Case, channels: int) -> dict[str, np.ndarray]:
  """Noisy latents and the velocity they should give, text features; fp32."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
  return {
    "latents": draw(1, *case.grid, channels),
    "target": draw(1, *case.grid, channels),
    "text": draw(1, TEXT_TOKENS, case.text_width),
  }


def loss_of(
  graphdef: nnx.GraphDef, params: nnx.State, inputs: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Loss and velocity of a text and of silence, without references."""
  model, latents = nnx.merge(graphdef, params), inputs["latents"]
  size, dtype = latents.shape[:2], jnp.dtype(model.config.dtype)
  silence = jnp.zeros((*size, AUDIO_TOKENS, model.config.audio_width), dtype)
  conditions = Conditions(
    text=inputs["text"].astype(dtype),
    speak=silence,
    listen=silence,
    references=jnp.zeros((1, 0, *latents.shape[2:])),
    reference_kind=jnp.zeros((1, 0), jnp.int32),
    reference_label=jnp.zeros((1, 0), jnp.int32),
  )
  velocity = model(latents, jnp.full(size, TIMESTEP), conditions)
  return jnp.square(velocity - inputs["target"]).mean(), velocity


def check(case: Case, folder: pathlib.Path) -> dict:
  """Writes weights and gradients under diffusers' names, inputs, loss and velocity."""
  config = model_config(case)
  model = awakened(VideoTransformer(config, rngs=nnx.Rngs(0)))
  for pair in (model.pairs.speak, model.pairs.listen):  # Wan2.1 hears nothing
    pair.cross_attention.audio_out.kernel[...] *= 0.0  # its gradient is not compared
  graphdef, params = nnx.split(model)
  inputs = make_inputs(case, config.channels)
  gradient = jax.jit(jax.value_and_grad(functools.partial(loss_of, graphdef), has_aux=True))
  with jax.default_matmul_precision("highest"):
    (loss, velocity), grads = gradient(params, inputs)
  entries = wan.transformer_layout(config)
  save_file(layout.read_out(entries, model), folder / "weights.safetensors")
  gradients = layout.read_out(entries, nnx.merge(graphdef, grads))
  save_file(gradients, folder / "gradients.safetensors")
  np.savez(folder / "inputs.npz", loss=loss, velocity=velocity, timestep=TIMESTEP, **inputs)
  return {"loss": float(loss)}


def make_step(graphdef: nnx.GraphDef) -> tuple[optax.GradientTransformation, Callable]:
  """AdamW, and the step (params, moments, inputs) -> (params, moments, loss)."""
  optimiser = optax.adamw(LEARNING_RATE, weight_decay=0.01)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: nnx.State, moments: optax.OptState, inputs: dict[str, jax.Array]) -> tuple:
    loss = lambda params: loss_of(graphdef, params, inputs)[0]  # noqa: E731
    value, grads = jax.value_and_grad(loss)(params)
    updates, moments = optimiser.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments, value

  return optimiser, step


def measure(case: Case) -> dict:
  """Seconds of every timed step."""
  config = model_config(case)
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))
  params = jax.jit(lambda: nnx.state(VideoTransformer(config, rngs=nnx.Rngs(0))))()
  optimiser, step = make_step(graphdef)
  moments = jax.jit(optimiser.init)(params)
  inputs = jax.device_put(make_inputs(case, config.channels))
  seconds = []
  for _ in range(2 + case.steps):
    begin = time.perf_counter()
    params, moments, loss = step(params, moments, inputs)
    value = float(loss)
    jax.block_until_ready(params)
    seconds.append(time.perf_counter() - begin)
  device = jax.devices()[0].device_kind
  about = f"jax {jax.__version__}, {device}, {case.kernel}"
  return {"seconds": seconds[2:], "loss": value, "about": about}


def main():
  mode, case, folder = sys.argv[1:]
  case = Case(**json.loads(case))
  found = check(case, pathlib.Path(folder)) if mode == "check" else measure(case)
  print(json.dumps(found))


if __name__ == "__main__":
  main()
