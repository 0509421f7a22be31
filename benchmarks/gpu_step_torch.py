"""PyTorch's side of `train_step_gpu.py`: diffusers' Wan2.1 transformer, compiled block by block.

One process, one line of JSON. Imports nothing of this project: it runs in a Python of its own. As a
careful user would train it: bf16 copies of fp32 masters, fused AdamW, fused attention only.
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
CHANNELS = 16
LEARNING_RATE = 1e-5


def make_model(case: dict) -> WanTransformer3DModel:
  """The transformer on its device, in fp32."""
  with DEVICE:
    return WanTransformer3DModel(
      patch_size=(1, 2, 2),
      num_attention_heads=case["heads"],
      attention_head_dim=case["width"] // case["heads"],
      in_channels=CHANNELS,
      out_channels=CHANNELS,
      text_dim=case["text_width"],
      ffn_dim=case["hidden"],
      num_layers=case["layers"],
      rope_max_seq_len=128,
    )


def channels_first(latents: np.ndarray) -> torch.Tensor:
  """[B, F, H, W, C] -> [B, C, F, H, W] on the device."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(latents, -1, 1))).to(DEVICE)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
  """Norm of the difference, in norms of what was expected."""
  return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def check(case: dict, folder: pathlib.Path) -> dict:
  """How far output, loss and the worst gradient are from the other side's, on its weights."""
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
  model = make_model(case)
  model.load_state_dict(load_file(folder / "weights.safetensors", device=str(DEVICE)))
  given = np.load(folder / "inputs.npz")
  velocity = model(
    hidden_states=channels_first(given["latents"]),
    timestep=torch.tensor([1000.0 * float(given["timestep"])], device=DEVICE),
    encoder_hidden_states=torch.from_numpy(given["text"]).to(DEVICE),
  ).sample
  loss = (velocity - channels_first(given["target"])).square().mean()
  loss.backward()
  expected = load_file(folder / "gradients.safetensors", device=str(DEVICE))
  found = {name: p.grad for name, p in model.named_parameters()}
  largest = max(float(g.norm()) for g in expected.values())
  # A key's bias has no gradient but rounding, so tiny ones are compared with the largest.
  worst = max(
    float((found[name] - g).norm()) / max(float(g.norm()), 1e-3 * largest)
    for name, g in expected.items()
  )
  memory = torch.cuda.get_device_properties(0).total_memory if CUDA else 0
  return {
    "output": relative(velocity.detach(), channels_first(given["velocity"])),
    "loss": abs(loss.item() / float(given["loss"]) - 1.0),
    "gradients": worst,
    "memory": memory,
    "name": torch.cuda.get_device_name(0) if CUDA else "cpu",
  }


class Trainer:
  """Steps of the compiled model in half precision; masters, moments and update in fp32."""

  def __init__(self, case: dict):
    dtype = getattr(torch, case["dtype"])
    torch.manual_seed(0)
    self.model = make_model(case).train()
    self.masters = [p.detach().clone() for p in self.model.parameters()]
    kept = tuple(self.model._keep_in_fp32_modules)  # norms, tables, timestep: as diffusers does
    for name, param in self.model.named_parameters():
      if not any(part in name for part in kept):
        param.data = param.data.to(dtype)
    self.params = list(self.model.parameters())
    if case["remat"]:
      self.model.enable_gradient_checkpointing()
    self.model.compile_repeated_blocks(fullgraph=True)
    self.optimiser = torch.optim.AdamW(self.masters, LEARNING_RATE, weight_decay=0.01, fused=True)
    rng = np.random.default_rng(0)
    shape = (1, *case["grid"], CHANNELS)
    latents, target = (channels_first(rng.standard_normal(shape, np.float32)) for _ in range(2))
    text = rng.standard_normal((1, 512, case["text_width"]), np.float32)
    self.target = target
    self.given = dict(
      hidden_states=latents.to(dtype),
      timestep=torch.tensor([500.0], device=DEVICE),
      encoder_hidden_states=torch.from_numpy(text).to(DEVICE, dtype),
    )

  def step(self) -> float:
    """One step; waits for the device."""
    velocity = self.model(**self.given).sample
    loss = (velocity.float() - self.target).square().mean()
    loss.backward()
    for master, param in zip(self.masters, self.params, strict=True):
      master.grad = param.grad.float()
      param.grad = None
    self.optimiser.step()
    with torch.no_grad():
      torch._foreach_copy_(self.params, self.masters)
    for master in self.masters:
      master.grad = None
    value = loss.item()
    if CUDA:
      torch.cuda.synchronize()
    return value


def measure(case: dict) -> dict:
  """Seconds of every timed step."""
  if CUDA:
    torch.backends.cuda.enable_math_sdp(False)
  trainer, seconds = Trainer(case), []
  for _ in range(2 + case["steps"]):
    begin = time.perf_counter()
    loss = trainer.step()
    seconds.append(time.perf_counter() - begin)
  device = torch.cuda.get_device_name(0) if CUDA else "cpu"
  about = f"torch {torch.__version__}, {device}, compiled"
  return {"seconds": seconds[2:], "loss": loss, "about": about}


if __name__ == "__main__":
  mode, words, folder = sys.argv[1:]
  settings = json.loads(words)
  found = check(settings, pathlib.Path(folder)) if mode == "check" else measure(settings)
  print(json.dumps(found))
