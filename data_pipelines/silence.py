"""A silent, grey clip of any size: what tells the shapes of a batch where no data is at hand."""

import math

import numpy as np
from ml_dtypes import bfloat16

from data_pipelines.clip import FEATURES_PER_SECOND, SAMPLE_RATE, EncodedClip, audio_samples


def silent_clip(
  latents: tuple[int, int, int, int],
  references: int,
  *,
  fps: int = 24,
  text_features: tuple[int, int] | None = None,
  audio_features: tuple[int, int] | None = None,
) -> EncodedClip:
  """An encoded clip of zeros.

  Args:
    latents: shape [F, h, w, C].
    references: pictures, all of the first kind.
    fps: video frames per second.
    text_features: [L, D_text]; None where no frozen encoder is used, as below.
    audio_features: hidden states and width of both tracks.
  """
  frames = 4 * (latents[0] - 1) + 1
  samples = audio_samples(frames, fps)
  sound = np.zeros(samples, np.float32)
  heard = None
  if audio_features:
    seconds = math.ceil(samples / SAMPLE_RATE)
    heard = np.zeros((seconds * FEATURES_PER_SECOND, *audio_features), bfloat16)
  return EncodedClip(
    clip_id="silence",
    character_id="nobody",
    style="none",
    source="zeros",
    consent="none needed",
    fps=fps,
    text="",
    latents=np.zeros(latents, np.float32),
    speak_audio=sound,
    listen_audio=sound,
    state=np.zeros(frames, np.int8),
    references=np.zeros((references, *latents[1:]), np.float32),
    reference_kind=np.zeros(references, np.int32),
    reference_label=np.zeros(references, np.int32),
    text_features=np.zeros(text_features, bfloat16) if text_features else None,
    speak_features=heard,
    listen_features=heard,
  )
