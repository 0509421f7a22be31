"""Our modules against the public PyTorch ones: seconds a call, as ratios of one run.

Both run in this process on the same cores, in turns, in fp32, with random weights of the published
widths and fewer layers. Our transformer does more: it has the audio branch.
  pip install -e .[parity] && python -m benchmarks.modules_vs_torch
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from lpm_jax.models.transformer import TransformerConfig, VideoTransformer
from lpm_jax.models.umt5 import UMT5Config, UMT5Encoder
from lpm_jax.models.vae import VAEConfig, VideoVAE
from lpm_jax.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from tests.fixtures import public_modules
from tests.weights.conditions import no_references

TRUNK = TransformerConfig(
  width=1536, heads=12, layers=4, hidden=8960, text_width=4096, audio_width=768
)
LATENTS = (1, 3, 32, 32, 16)  # 768 tokens
VAE = VAEConfig()
VIDEO = (1, 5, 96, 96, 3)
UMT5 = UMT5Config(vocabulary=1000, layers=2)
WAVE = dataclasses.replace(Wav2Vec2Config.large(), layers=6)
SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Pair:
  """The same work on either side; each call waits for its result."""

  ours: Callable[[], object]
  theirs: Callable[[], object]


def compiled(module: nnx.Module, method: str, *inputs: object) -> Callable[[], object]:
  """A call of a method on these inputs, compiled."""
  graphdef, state = nnx.split(module)
  run = jax.jit(lambda state, *x: getattr(nnx.merge(graphdef, state), method)(*x))
  return lambda: jax.block_until_ready(run(state, *inputs))


def without_gradient(call: Callable[[], object]) -> Callable[[], object]:
  """The PyTorch call in inference mode."""
  return torch.inference_mode()(call)


def transformer_pairs() -> dict[str, Pair]:
  """Forward, and forward with backward to all parameters."""
  rng = np.random.default_rng(0)
  latents = rng.normal(size=LATENTS).astype(np.float32)
  text = rng.normal(size=(1, 512, TRUNK.text_width)).astype(np.float32)
  ours = VideoTransformer(TRUNK, rngs=nnx.Rngs(0))
  conditions = no_references(TRUNK, jnp.asarray(text), LATENTS, slots=0)
  times = jnp.full(LATENTS[:2], 0.5)
  graphdef, params = nnx.split(ours)
  gradient = jax.jit(
    jax.grad(lambda p: jnp.square(nnx.merge(graphdef, p)(latents, times, conditions)).mean())
  )
  theirs = public_modules.randomised(public_modules.public_trunk(TRUNK))
  given = dict(
    hidden_states=torch.from_numpy(np.ascontiguousarray(np.moveaxis(latents, -1, 1))),
    timestep=torch.tensor([500.0]),
    encoder_hidden_states=torch.from_numpy(text),
  )

  def backward():
    theirs.zero_grad(set_to_none=True)
    theirs(**given).sample.square().mean().backward()

  return {
    "transformer forward": Pair(
      compiled(ours, "__call__", latents, times, conditions),
      without_gradient(lambda: theirs(**given)),
    ),
    "transformer forward + backward": Pair(
      lambda: jax.block_until_ready(gradient(params)), backward
    ),
  }


def autoencoder_pairs() -> dict[str, Pair]:
  """Encode and decode of a whole clip."""
  rng = np.random.default_rng(0)
  video = rng.uniform(-1, 1, VIDEO).astype(np.float32)
  latents = rng.normal(size=(1, 2, VIDEO[2] // 8, VIDEO[3] // 8, 16)).astype(np.float32)
  ours = VideoVAE(VAE, rngs=nnx.Rngs(0))
  theirs = public_modules.randomised(public_modules.public_vae(VAE))
  first = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))  # noqa: E731
  return {
    "VAE encode": Pair(
      compiled(ours, "encode_moments", video),
      without_gradient(functools.partial(theirs.encode, first(video))),
    ),
    "VAE decode": Pair(
      compiled(ours, "decode_posterior", latents),
      without_gradient(functools.partial(theirs.decode, first(latents))),
    ),
  }


def encoder_pairs() -> dict[str, Pair]:
  """umT5 on 256 tokens, wav2vec 2.0 on ten seconds."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, UMT5.vocabulary, (1, 256))
  umt5 = public_modules.randomised(public_modules.public_umt5(UMT5))
  waveform = rng.normal(size=(1, 16_000 * SECONDS)).astype(np.float32)
  wave = public_modules.randomised(public_modules.public_wav2vec2(WAVE))
  return {
    "umT5": Pair(
      compiled(UMT5Encoder(UMT5, rngs=nnx.Rngs(0)), "__call__", tokens.astype(np.int32)),
      without_gradient(functools.partial(umt5, torch.from_numpy(tokens))),
    ),
    "wav2vec 2.0 large": Pair(
      compiled(Wav2Vec2Encoder(WAVE, rngs=nnx.Rngs(0)), "__call__", waveform),
      without_gradient(
        lambda: wave(torch.from_numpy(waveform), output_hidden_states=True).hidden_states
      ),
    ),
  }


def seconds_of(call: Callable[[], object]) -> float:
  """Seconds that one call takes."""
  begin = time.perf_counter()
  call()
  return time.perf_counter() - begin


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--turns", type=int, default=5)
  args = parser.parse_args()
  torch.set_num_threads(os.cpu_count())
  print(f"fp32, {os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__} eager")
  print(f"{'':32} {'ours (s)':>9} {'PyTorch (s)':>12} {'PyTorch / ours':>15}")
  for make in (transformer_pairs, autoencoder_pairs, encoder_pairs):
    for name, pair in make().items():
      pair.ours(), pair.theirs()  # compiled and warm
      turns = [(seconds_of(pair.ours), seconds_of(pair.theirs)) for _ in range(args.turns)]
      ours, theirs = (statistics.median(side) for side in zip(*turns, strict=True))
      print(f"{name:32} {ours:9.2f} {theirs:12.2f} {theirs / ours:15.2f}", flush=True)


if __name__ == "__main__":
  main()
