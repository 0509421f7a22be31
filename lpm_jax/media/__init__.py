"""Files that people bring and take away: audio, pictures, video, who speaks when."""

from lpm_jax.media.audio import (
  is_silent,
  read_audio,
  read_stereo_tracks,
  spooled_audio,
  spooled_stereo_tracks,
)
from lpm_jax.media.dialogue import Turn, parse_timed_texts, read_turns, split_tracks
from lpm_jax.media.files import MediaError, check_writable, written_whole
from lpm_jax.media.inputs import Inputs, Request, read_inputs
from lpm_jax.media.picture import Reference, read_picture, read_reference
from lpm_jax.media.video import (
  Video,
  audio_video_offset,
  join_videos,
  read_frames,
  read_video,
  side_by_side,
  write_video,
)

__all__ = [
  "Inputs",
  "MediaError",
  "Reference",
  "Request",
  "Turn",
  "Video",
  "audio_video_offset",
  "check_writable",
  "is_silent",
  "join_videos",
  "parse_timed_texts",
  "read_audio",
  "read_frames",
  "read_inputs",
  "read_picture",
  "read_reference",
  "read_stereo_tracks",
  "read_turns",
  "read_video",
  "side_by_side",
  "split_tracks",
  "spooled_audio",
  "spooled_stereo_tracks",
  "write_video",
  "written_whole",
]
