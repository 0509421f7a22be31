"""What video costs in evaluations of the transformer: counted from the settings, not timed.

The branches of guidance count each. A pass of Base covers a whole window, one of a stream a chunk:
`evaluations_per_frame` says how often every frame is worked on, whatever the lengths.
"""

from data_pipelines.clip import latent_frames
from lpm_jax.diffusion.continuation import plan_windows
from lpm_jax.generate import GenerateSettings
from lpm_jax.models.audio import FRAMES_PER_LATENT
from lpm_jax.streaming.sampler import StreamSettings


def generation_cost(settings: GenerateSettings, frames: int, fps: float) -> dict[str, float]:
  """Cost of clips of `frames` video frames, 1 + 4k, made by Base."""
  windows = plan_windows(latent_frames(frames), settings.window, settings.overlap, settings.blend)
  guided = not settings.text_guidance == settings.audio_guidance == 1.0
  each = settings.steps * (3 if guided else 1)
  return {
    "evaluations_per_second": each * len(windows) * fps / frames,
    "evaluations_per_frame": float(each),
    "cache_passes_per_second": 0.0,
  }


def stream_cost(settings: StreamSettings, fps: float) -> dict[str, float]:
  """Cost of a stream that runs; what it takes to begin, once, is left out.

  `cache_passes_per_second` are the passes that only note a chunk for later ones, on top.
  """
  each = len(settings.backbone) + 1
  chunks = fps / (FRAMES_PER_LATENT * settings.causal.frames)
  return {
    "evaluations_per_second": each * chunks,
    "evaluations_per_frame": float(each),
    "cache_passes_per_second": (sum(settings.evaluations()) - each) * chunks,
  }
