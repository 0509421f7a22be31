"""The Base model and its training step in plain PyTorch, for `train_step_vs_torch.py`.

Runs as a worker of that script: one command a line on standard input, one line of JSON in return.
Written the way a PyTorch user would: fused attention, fused AdamW, foreach clipping and averaging.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

THETA = 10_000.0


def angles(position: Tensor, width: int) -> Tensor:
  """Rotary angles [..., width / 2] of positions [...]."""
  frequency = THETA ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
  return position.float()[..., None] * frequency


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
  """Rotates adjacent channel pairs of x [B, S, K, d]; turn = cos, sin [B or 1, S, 1, d / 2]."""
  cos, sin = turn
  even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
  return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
  """[B, S, d / 2] -> cos and sin [B, S, 1, d / 2]."""
  return angle.cos()[:, :, None], angle.sin()[:, :, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
  """[B, S, K, d], [B, T, K, d] -> [B, S, K * d]; mask bool, broadcast to [B, K, S, T]."""
  turned = (x.transpose(1, 2) for x in (query, key, value))
  return F.scaled_dot_product_attention(*turned, attn_mask=mask).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
  """Up, GELU-tanh, down."""

  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x: Tensor) -> Tensor:
    return self.down(F.gelu(self.up(x), approximate="tanh"))


class TextLayer(nn.Module):
  """Pre-norm self-attention and feed-forward."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.norm, self.feed_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.feed_forward = FeedForward(width, 4 * width)

  def forward(self, x: Tensor, mask: Tensor) -> Tensor:
    heads = self.project(self.norm(x)).unflatten(-1, (3, self.heads, -1))
    x = x + self.out(attend(*heads.unbind(2), mask))
    return x + self.feed_forward(self.feed_norm(x))


class TextEncoder(nn.Module):
  """Tokens [B, L] -> [B, L, D_text]."""

  def __init__(self, c: dict):
    super().__init__()
    width = c["width"]
    self.table = nn.Parameter(torch.zeros(c["vocabulary"], width))
    self.position = nn.Parameter(torch.zeros(c["length"], width))
    self.layers = nn.ModuleList([TextLayer(width, c["heads"]) for _ in range(c["layers"])])
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.null = nn.Parameter(torch.zeros(width))

  def forward(self, tokens: Tensor) -> Tensor:
    present = tokens > 0
    x = F.embedding(tokens, self.table) + self.position[: tokens.shape[1]]
    mask = (present | ~present.any(1, keepdim=True))[:, None, None]
    for layer in self.layers:
      x = layer(x, mask)
    return self.norm(x) * present[..., None]


class ConvLayer(nn.Module):
  """Residual dilated convolution over video frames as one matrix product."""

  def __init__(self, width: int, kernel: int, dilation: int):
    super().__init__()
    self.norm, self.taps = nn.LayerNorm(width, eps=1e-6), nn.Linear(kernel * width, width)
    self.dilation, self.reach = dilation, kernel // 2 * dilation

  def forward(self, x: Tensor) -> Tensor:
    frames, reach = x.shape[1], self.reach
    padded = F.pad(self.norm(x), (0, 0, reach, reach))
    shifts = range(0, 2 * reach + 1, self.dilation)
    taps = torch.cat([padded[:, s : s + frames] for s in shifts], dim=-1)
    return x + F.gelu(self.taps(taps), approximate="tanh")


class AudioEncoder(nn.Module):
  """Waveform [B, S] -> [B, F, 4, D_audio]; `index` and `filters` are those of the JAX encoder."""

  def __init__(self, c: dict, index: np.ndarray, filters: np.ndarray, lead: int):
    super().__init__()
    width = c["width"]
    self.index, self.lead = torch.from_numpy(index), lead
    self.filters = torch.from_numpy(filters.T.copy())
    self.window = torch.from_numpy(np.hanning(index.shape[1])).float()
    self.project = nn.Linear(4 * c["bands"], width)
    self.layers = nn.ModuleList([ConvLayer(width, c["kernel"], d) for d in c["dilations"]])
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.null = nn.Parameter(torch.zeros(width))

  def forward(self, waveform: Tensor) -> Tensor:
    missing = max(0, int(self.index[-1, -1]) + 1 - self.lead - waveform.shape[1])
    padded = F.pad(waveform, (self.lead, missing))
    power = torch.fft.rfft(padded[:, self.index] * self.window, 512).abs().square()
    mel = (torch.log(power @ self.filters + 1e-5) + 6.0) / 4.0
    x = self.project(mel.unflatten(1, (-1, 4)).flatten(2))
    for layer in self.layers:
      x = layer(x)
    return self.norm(x).unflatten(1, (-1, 4))


class SelfAttention(nn.Module):
  """Full attention over video and reference tokens, q and k RMS-normalised over the width."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
    self.query_norm, self.key_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

  def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    heads = (self.heads, -1)
    query = rotate(self.query_norm(self.query(x)).unflatten(-1, heads), turn)
    key = rotate(self.key_norm(self.key(x)).unflatten(-1, heads), turn)
    return self.out(attend(query, key, self.value(x).unflatten(-1, heads), mask))


class TextAudioAttention(nn.Module):
  """Text and audio cross-attention in parallel with a shared query."""

  def __init__(self, c: dict, window: tuple[int, int]):
    super().__init__()
    width, self.heads, self.window = c["width"], c["heads"], window
    self.query, self.text_key, self.text_value, self.text_out = (
      nn.Linear(width, width) for _ in range(4)
    )
    self.audio_key = nn.Linear(c["audio_width"], width)
    self.audio_value = nn.Linear(c["audio_width"], width)
    self.audio_out = nn.Linear(width, width, bias=False)
    norm = {"normalized_shape": width, "eps": 1e-6}
    self.query_norm, self.text_key_norm = nn.RMSNorm(**norm), nn.RMSNorm(**norm)
    self.audio_key_norm = nn.RMSNorm(**norm)

  def forward(self, x: Tensor, text: Tensor, audio: Tensor) -> Tensor:
    """x [B, F, N, D], text [B, L, D], audio [B, F, A, D_audio] -> [B, F, N, D]."""
    frames, tokens, per_frame = x.shape[1], x.shape[2], audio.shape[2]
    heads = (self.heads, -1)
    query = self.query_norm(self.query(x.flatten(1, 2))).unflatten(-1, heads)
    text_key = self.text_key_norm(self.text_key(text)).unflatten(-1, heads)
    seen = attend(query, text_key, self.text_value(text).unflatten(-1, heads))
    audio = audio.flatten(1, 2)
    audio_key = self.audio_key_norm(self.audio_key(audio)).unflatten(-1, heads)
    head = query.shape[-1]
    frame = torch.arange(frames)
    at = torch.repeat_interleave(frame, per_frame)
    sees = (at >= frame[:, None] - self.window[0]) & (at <= frame[:, None] + self.window[1])
    query_time = torch.repeat_interleave(frame * per_frame, tokens)
    key_time = torch.arange(frames * per_frame) - per_frame + 1
    heard = attend(
      rotate(query, cos_sin(angles(query_time, head)[None])),
      rotate(audio_key, cos_sin(angles(key_time, head)[None])),
      self.audio_value(audio).unflatten(-1, heads),
      torch.repeat_interleave(sees, tokens, dim=0)[None, None],
    )
    return (self.text_out(seen) + self.audio_out(heard)).unflatten(1, (frames, tokens))


class Block(nn.Module):
  """AdaLN self-attention, text and audio, AdaLN feed-forward."""

  def __init__(self, c: dict, window: tuple[int, int]):
    super().__init__()
    width = c["width"]
    self.modulation = nn.Parameter(torch.zeros(6, width))
    self.self_attention = SelfAttention(width, c["heads"])
    self.cross_norm = nn.LayerNorm(width, eps=1e-6)
    self.cross_attention = TextAudioAttention(c, window)
    self.feed_forward = FeedForward(width, c["hidden"])

  def forward(
    self, x: Tensor, modulation: Tensor, audio: Tensor, text: Tensor, turn: tuple, mask: Tensor
  ) -> Tensor:
    grids, frames = x.shape[1], audio.shape[1]
    table = (modulation + self.modulation)[:, :, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = table.unbind(3)
    attended = self.self_attention(modulate(x, shift1, scale1).flatten(1, 2), turn, mask)
    x = x + gate1 * attended.unflatten(1, (grids, -1))
    video = x[:, :frames]
    video = video + self.cross_attention(self.cross_norm(video), text, audio)
    x = torch.cat([video, x[:, frames:]], dim=1)
    return x + gate2 * self.feed_forward(modulate(x, shift2, scale2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
  """Layer norm without weights, then scale and shift."""
  return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1.0 + scale) + shift


class Timestep(nn.Module):
  """[...] in [0, 1] -> embedding [..., D] and modulation [..., 6, D]."""

  def __init__(self, width: int, features: int = 256):
    super().__init__()
    self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)
    self.project = nn.Linear(width, 6 * width)
    self.half = features // 2

  def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
    frequency = 10_000.0 ** (-torch.arange(self.half, dtype=torch.float32) / self.half)
    angle = 1000.0 * t[..., None] * frequency
    features = torch.cat([angle.cos(), angle.sin()], dim=-1)
    embedding = self.second(F.silu(self.first(features)))
    return embedding, self.project(F.silu(embedding)).unflatten(-1, (6, -1))


class Transformer(nn.Module):
  """Velocity of noisy latents."""

  def __init__(self, c: dict):
    super().__init__()
    width, patch = c["width"], c["channels"] * c["patch"][0] * c["patch"][1]
    self.config = c
    self.patch_in, self.timestep = nn.Linear(patch, width), Timestep(width)
    self.text_up, self.text_down = nn.Linear(c["text_width"], width), nn.Linear(width, width)
    windows = (c["speak_window"], c["listen_window"])
    self.blocks = nn.ModuleList([Block(c, windows[i % 2]) for i in range(c["layers"])])
    self.head_modulation = nn.Parameter(torch.zeros(2, width))
    self.head = nn.Linear(width, patch)

  def forward(
    self,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    tracks: tuple[Tensor, Tensor],
    batch: dict,
  ) -> Tensor:
    c, frames = self.config, latents.shape[1]
    grids = torch.cat([latents, batch["references"]], dim=1)
    rows, columns = grids.shape[2] // c["patch"][0], grids.shape[3] // c["patch"][1]
    kind, label = batch["reference_kind"], batch["reference_label"]
    times = torch.cat([timestep, torch.zeros(kind.shape)], dim=1)
    cut = grids.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 1, 2, 4, 3, 5, 6)
    x = self.patch_in(cut.flatten(4).flatten(2, 3))
    embedding, modulation = self.timestep(times)
    start = torch.tensor(c["offsets"]["starts"])[kind.clamp(min=0)]
    index = torch.arange(frames).expand(len(kind), -1)
    time = torch.cat([index, start + c["offsets"]["stride"] * label], dim=1)
    turn = cos_sin(self._grid_angles(time, rows, columns))
    seen = torch.cat([torch.ones(len(kind), frames, dtype=torch.bool), kind >= 0], dim=1)
    mask = seen.repeat_interleave(rows * columns, dim=1)[:, None, None]
    text = self.text_down(F.gelu(self.text_up(text), approximate="tanh"))
    for i, block in enumerate(self.blocks):
      x = block(x, modulation, tracks[i % 2], text, turn, mask)
    shift, scale = (embedding[:, :frames, None] + row for row in self.head_modulation)
    out = self.head(modulate(x[:, :frames], shift, scale))
    out = out.unflatten(2, (rows, columns)).unflatten(4, (*c["patch"], -1))
    return out.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)

  def _grid_angles(self, time: Tensor, rows: int, columns: int) -> Tensor:
    head = self.config["width"] // self.config["heads"]
    side = 2 * (head // 6)
    shape = (*time.shape, rows, columns, -1)
    parts = (
      angles(time, head - 2 * side)[:, :, None, None].expand(shape),
      angles(torch.arange(rows), side)[:, None].expand(shape),
      angles(torch.arange(columns), side).expand(shape),
    )
    return torch.cat(parts, dim=-1).flatten(1, 3)


class LPM(nn.Module):
  """Text encoder, two audio encoders and the transformer."""

  def __init__(self, c: dict, index: np.ndarray, filters: np.ndarray, lead: int):
    super().__init__()
    self.text = TextEncoder(c["text"])
    self.speak = AudioEncoder(c["audio"], index, filters, lead)
    self.listen = AudioEncoder(c["audio"], index, filters, lead)
    self.transformer = Transformer(c["transformer"])

  def forward(self, noisy: Tensor, timestep: Tensor, batch: dict, drops: dict) -> Tensor:
    def drop(name: str, encoded: Tensor) -> Tensor:
      dropped = drops[name].reshape(-1, *(1,) * (encoded.dim() - 1))
      return torch.where(dropped, getattr(self, name).null, encoded)

    text = drop("text", self.text(batch["text_tokens"]))
    window = batch["start"][:, None] + torch.arange(noisy.shape[1])
    rows = torch.arange(len(window))[:, None]
    tracks = tuple(
      drop(name, getattr(self, name)(batch[f"{name}_audio"]))[rows, window]
      for name in ("speak", "listen")
    )
    return self.transformer(noisy, timestep, text, tracks, batch)


def load(model: LPM, tensors: dict[str, np.ndarray]):
  """Copies JAX parameters by their path, all of them; stacked pairs of blocks are taken apart."""
  names = {"kernel": "weight", "scale": "weight"}
  state = {}
  for path, array in tensors.items():
    *parents, leaf = path.split("/")
    transpose = leaf == "kernel"
    leaf = names.get(leaf, leaf)
    if "pairs" in parents:
      head, (side, *rest) = parents[:1], parents[2:]
      for i, row in enumerate(array):
        block = 2 * i + (side == "listen")
        key = ".".join([*head, "blocks", str(block), *rest, leaf])
        state[key] = torch.from_numpy(np.ascontiguousarray(row.T if transpose else row))
    else:
      key = ".".join([*parents, leaf])
      state[key] = torch.from_numpy(np.ascontiguousarray(array.T if transpose else array))
  model.load_state_dict(state)


class Trainer:
  """One training step: loss, gradients, clipping, AdamW, moving average."""

  def __init__(self, model: LPM, batch: dict, settings: dict):
    self.model, self.batch, self.settings = model, batch, settings
    self.params = list(model.parameters())
    matrices = [p for p in self.params if p.dim() >= 2]
    others = [p for p in self.params if p.dim() < 2]
    groups = [
      {"params": matrices, "weight_decay": settings["weight_decay"]},
      {"params": others, "weight_decay": 0.0},
    ]
    self.optimiser = torch.optim.AdamW(
      groups, lr=settings["learning_rate"], betas=tuple(settings["betas"]), eps=1e-8, fused=True
    )
    self.ema = [p.detach().clone() for p in self.params]

  def step(self) -> float:
    latents, shift = self.batch["latents"], self.settings["shift"]
    size, frames = latents.shape[:2]
    drops = {n: torch.rand(size) < p for n, p in self.settings["drops"].items()}
    t = torch.rand(size, 1)
    t = shift * t / (1.0 + (shift - 1.0) * t)
    unknown = (torch.arange(frames) >= self.batch["known"][:, None]).float()
    t = t * unknown
    noise, wide = torch.randn_like(latents), t[:, :, None, None, None]
    velocity = self.model((1.0 - wide) * latents + wide * noise, t, self.batch, drops)
    error = (velocity - (noise - latents)).square().mean((2, 3, 4))
    loss = ((error * unknown).sum(1) / unknown.sum(1)).mean()
    self.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.params, self.settings["clip_norm"], foreach=True)
    self.optimiser.step()
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, self.params, 1.0 - self.settings["ema"])
    return loss.item()


def main(path: str):
  """Serves `predict FILE` and `steps N` until standard input ends."""
  data = np.load(path)
  settings = json.loads(str(data["settings"]))
  torch.set_num_threads(settings["threads"])
  torch.manual_seed(0)
  batch = {k[6:]: torch.from_numpy(data[k]) for k in data.files if k.startswith("batch/")}
  batch = {k: v.long() if v.dtype == torch.int32 else v for k, v in batch.items()}
  model = LPM(settings["model"], data["index"], data["filters"], settings["lead"])
  load(model, {k[7:]: data[k] for k in data.files if k.startswith("params/")})
  trainer = Trainer(model, batch, settings)
  print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
  for line in sys.stdin:
    command, argument = line.split(maxsplit=1)
    if command == "predict":
      none = {n: torch.zeros(len(batch["latents"]), dtype=torch.bool) for n in settings["drops"]}
      with torch.no_grad():
        velocity = model(batch["latents"], torch.from_numpy(data["timestep"]), batch, none)
      np.save(argument.strip(), velocity.numpy())
      print(json.dumps({}), flush=True)
    else:
      begin = time.perf_counter()
      losses = [trainer.step() for _ in range(int(argument))]
      seconds = time.perf_counter() - begin
      print(json.dumps({"seconds": seconds, "loss": losses[-1]}), flush=True)


if __name__ == "__main__":
  main(sys.argv[1])
