"""What a step of distillation has to compute, in the mean of steps: closed forms, as for Base."""

import functools

from lpm_jax.distillation.online_task import OnlineTask
from lpm_jax.distillation.refiner_start import RefinerStartTask
from lpm_jax.distillation.tasks import MatchingTask, OffPolicyTask, OnPolicyTask
from lpm_jax.models.attention import ChunkCausal, GridMask, TeacherForcing
from lpm_jax.models.audio import FRAMES_PER_LATENT as AUDIO_TOKENS
from lpm_jax.plan.flops import forward_flops
from lpm_jax.streaming.sampler import Evaluations

CONVENTION = (
  "matrix products of transformers in the mean of steps, forward once and backward twice, each "
  "query with the keys that it sees, all slots of references; encoders' adapters, timesteps and "
  "rotations left out, nothing counted twice"
)


def clip_flops(task: OnlineTask, *, grid: int, slots: int) -> float:
  """Operations of a clip in one step, whatever is computed anew left out.

  Args:
    task: of one of the stages.
    grid: tokens of a latent.
    slots: references.
  """
  return _Clip(task, grid, slots).total()


class _Clip:
  """Passes of one clip. `forward` are operations of a pass, kinds of passes are methods."""

  def __init__(self, task: OnlineTask, grid: int, slots: int):
    self.task, self.slots, self.causal = task, slots, task.settings.causal
    text = task.model_config.text.length
    self.forward = functools.partial(
      forward_flops, task.model_config.transformer, grid=grid, text=text
    )
    self.frames = 1 + task.chunks * task.frames

  def total(self) -> float:
    """A step of any stage."""
    task = self.task
    if not isinstance(task, MatchingTask):
      before = 0
      if isinstance(task, RefinerStartTask):
        before = len(task.settings.backbone) + task.config.loss.rounds
      return (3 + before) * self.forced()
    turn = 1 / task.config.loss.every
    branches = 1 if tuple(task.config.loss.guidance) == (1.0, 1.0) else 3
    scores = (3 + branches * turn) * self.window()
    if isinstance(task, OffPolicyTask):
      return scores + (1 + 2 * turn) * self.forced()
    backbone, refiner = task.settings.of_backbone(), task.settings.of_refiner()
    if isinstance(task, OnPolicyTask):
      count = len(backbone.levels)
      chunk = self.chunk(task.horizon)
      evaluations = (count + 1) / 2 + (backbone.history is not None)
      rolled = task.chunks * (evaluations + 2 * turn) * chunk
      return scores + rolled + self.beginning() / task.horizon
    evaluations = sum(map(_evaluations, (backbone, refiner)))
    return scores + task.chunks * (evaluations + 2 * turn) * self.chunk(1) + 2 * self.beginning()

  def window(self) -> int:
    """All frames at once, as scores see them."""
    audio = AUDIO_TOKENS * self.frames
    return self.forward(frames=self.frames, slots=self.slots, audio=audio)

  def forced(self) -> int:
    """All frames twice, clean and noisy."""
    frames, mask = 2 * self.frames, TeacherForcing(self.causal, self.frames)
    seen = _seen(mask, frames, self.slots)
    return self.forward(frames=frames, slots=self.slots, audio=AUDIO_TOKENS * frames, seen=seen)

  def beginning(self) -> int:
    """The main picture and the references, before the first chunk."""
    seen = _seen(ChunkCausal(), 1, self.slots)
    return self.forward(frames=1, slots=self.slots, audio=AUDIO_TOKENS, seen=seen)

  def chunk(self, horizon: int) -> float:
    """An evaluation of a chunk, in the mean of a stream that lasts so many steps."""
    frames, most = self.causal.frames, self.causal.sink + self.causal.window
    count = horizon * self.task.chunks
    held = sum(min(age, most) for age in range(count)) / count
    keys = 1 + self.slots + (held + 1) * frames
    past = self.task.model_config.transformer.heard_before()
    audio = AUDIO_TOKENS * (past + frames)
    return self.forward(frames=frames, slots=0, audio=audio, seen=frames * keys)


def _evaluations(how: Evaluations) -> int:
  return len(how.levels) + (how.history is not None)


def _seen(video: ChunkCausal | TeacherForcing, frames: int, slots: int) -> int:
  """Pairs of grids that see each other."""
  mask, grids = GridMask(video, frames), range(frames + slots)
  return sum(bool(mask(query, key)) for query in grids for key in grids)
