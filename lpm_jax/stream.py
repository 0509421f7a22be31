"""`lpm stream`: the live session fed from files, to an mp4 of any length.

The video is written in parts, each with the session as it was at its end: a run that is killed goes
on from its last whole part.
"""

import dataclasses
import json
import math
import os
import pathlib
import resource
import tempfile
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax import media
from lpm_jax.evaluation import drift
from lpm_jax.generate import text_between
from lpm_jax.media import Inputs
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.streaming.performer import Performer
from lpm_jax.streaming.sampler import StreamSettings
from lpm_jax.streaming.saved import load_session, save_session
from lpm_jax.streaming.session import Chunk, Session, SessionSettings
from lpm_jax.weights import loading


def stream_to_file(config: ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
  """Streams what the config names into WORKDIR/OUTPUT, with timings and a drift report beside it.

  Args:
    config: the fields of `media.Request`; `weights` and optionally `vae` (folders for
      `loading.load_stream`), `seed`, `output`, `scale`; `minutes` (0: as long as the sound),
      `repeat` (sound and texts begin anew when they end), `part_seconds`; `stream` (fields of
      StreamSettings, chunks as `causal`), `session` (fields of SessionSettings).
    workdir: folder that is written.

  Returns:
    The path of the mp4: stereo, left the character and right the partner.

  Raises:
    ValueError: an input is missing or cannot be used, weights do not fit, or the workdir holds
      another stream.
  """
  output = pathlib.Path(workdir) / config.output
  request = media.Request.from_config(config)
  if config.minutes:
    request = dataclasses.replace(request, seconds=60.0 * config.minutes)
  media.check_writable(output)
  inputs = media.read_inputs(request, spool=output.parent)
  models = loading.load_stream(config.weights, config.get("vae", ""))
  performer = Performer(models.lpm, models.vae, stream_settings(config.stream), models.refiner)
  recording = _Recording(config, pathlib.Path(workdir), inputs, performer)
  recording.perform()
  recording.finish(output)
  return output


def stream_settings(config: Mapping[str, object]) -> StreamSettings:
  """The settings in a config: fields of StreamSettings, `causal` those of ChunkCausal."""
  fields = dict(config)
  return StreamSettings(ChunkCausal(**fields.pop("causal")), **fields)


class _Recording:
  """A session that is fed from files, chunk by chunk, and written in parts.

  In the workdir: request.json, timings.jsonl (a row a chunk), and for each part the video; of the
  newest part also the session at its end.
  """

  def __init__(
    self, config: ConfigDict, workdir: pathlib.Path, inputs: Inputs, performer: Performer
  ):
    self.workdir, self.inputs, self.performer = workdir, inputs, performer
    self.scale, self.repeat = config.scale, config.repeat
    self.title = f"{config.output}: {inputs.seconds / 60:.1f} minutes"
    settings = SessionSettings(**config.session)
    performer.warm_up(inputs.picture, inputs.references)
    self.session = Session(performer, inputs.picture, inputs.references, "", settings, config.seed)
    self.first = self.session.first_frame
    self.chunks = max(1, math.ceil((inputs.seconds * performer.fps - 1) / performer.frames))
    self.per_part = max(1, round(config.part_seconds * performer.fps / performer.frames))
    self.rows: list[dict] = []
    self._take_up(config)

  def perform(self):
    """Makes the parts that are missing."""
    done = self.session.pulled
    with tqdm(total=self.chunks, initial=done, desc="stream", unit="chunk", disable=None) as bar:
      for begin in range(done, self.chunks, self.per_part):
        frames = [self.first[None]] if begin == 0 else []
        for index in range(begin, min(begin + self.per_part, self.chunks)):
          frames.append(self._chunk(index).frames)
          bar.update()
          bar.set_postfix(ms=self.rows[-1]["chunk_ms"], state=self.rows[-1]["state"])
        self._keep(begin // self.per_part, np.concatenate(frames))

  def finish(self, output: pathlib.Path):
    """Joins the parts, writes the report, prints the timings."""
    count = math.ceil(self.chunks / self.per_part)
    samples = self.performer.first + self.chunks * self.performer.samples
    with tempfile.TemporaryFile(dir=self.workdir) as file:
      for start in range(0, samples, self.performer.samples):
        length = min(self.performer.samples, samples - start)
        both = np.stack([self._sound(track, start, length) for track in self._tracks()], axis=1)
        file.write(both.tobytes())
      file.flush()
      sound = np.memmap(file, np.float32, "r").reshape(samples, 2)
    media.join_videos(output, [self._part(i, ".mp4") for i in range(count)], sound)
    offset = media.audio_video_offset(output)
    report = self.session.report() | {"file_audio_video_offset": offset}
    times = np.array([row["chunk_ms"] for row in self.rows])
    report |= {f"chunk_p{p}": float(np.percentile(times, p)) / 1000 for p in (50, 95, 99)}
    drift.write_page(
      output.with_suffix(".html"), self.rows, report, title=self.title, video=output.name
    )
    print(f"{output}: {self.chunks} chunks, {samples / SAMPLE_RATE:.2f} s")
    print(json.dumps(report, indent=2))

  def _chunk(self, index: int) -> Chunk:
    """Feeds the session its next chunk, pulls it and notes what it took."""
    length = self.performer.samples
    start = self.performer.first + index * length
    reply, partner = (self._sound(track, start, length) for track in self._tracks())
    self.session.push_reply(reply)
    self.session.push_partner(partner)
    self.session.end_reply()
    begin = start % self._period() / SAMPLE_RATE
    text = text_between(self.inputs.texts, begin, begin + length / SAMPLE_RATE)
    self.session.push_text(text)
    self.session.advance()
    chunk = self.session.pull()
    row = {"chunk": index, "seconds": chunk.seconds, "state": chunk.state.value}
    row["chunk_ms"] = round(1000 * self.session.chunk_seconds[-1], 2)
    row["resident_mb"] = round(resident_bytes() / 2**20, 1)
    self.rows.append(row | drift.measure(chunk.frames, self.first))
    return chunk

  def _keep(self, part: int, frames: np.ndarray):
    """Writes a part, then the session at its end: without that the part is made again."""
    media.write_video(self._part(part, ".mp4"), frames, self.performer.fps, scale=self.scale)
    with media.written_whole(self.workdir / "timings.jsonl") as temporary:
      temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
    save_session(self._part(part, ".session"), self.session)
    self._part(part - 1, ".session").unlink(missing_ok=True)

  def _take_up(self, config: ConfigDict):
    """Goes on from the newest part of the same request; ValueError for another one's workdir."""
    request, wanted = self.workdir / "request.json", config.to_json_best_effort(sort_keys=True)
    if request.exists() and request.read_text() != wanted:
      raise ValueError(f"{self.workdir}: holds the stream of another config: use another workdir")
    with media.written_whole(request) as temporary:
      temporary.write_text(wanted)
    saved = sorted((self.workdir / "parts").glob("*.session"))
    if saved:
      load_session(saved[-1], self.session)
      lines = (self.workdir / "timings.jsonl").read_text().splitlines()
      self.rows = [json.loads(line) for line in lines][: self.session.pulled]

  def _part(self, index: int, suffix: str) -> pathlib.Path:
    return self.workdir / "parts" / f"{index:05d}{suffix}"

  def _tracks(self) -> tuple[np.ndarray, np.ndarray]:
    return self.inputs.speak_audio, self.inputs.listen_audio

  def _period(self) -> int:
    """Samples after which sound and texts begin anew; beyond the end when they do not."""
    longest = max(map(len, self._tracks()))
    endless = self.performer.first + (self.chunks + 1) * self.performer.samples
    return longest if self.repeat and longest else endless

  def _sound(self, track: np.ndarray, start: int, count: int) -> np.ndarray:
    places = np.arange(start, start + count) % self._period()
    sound, there = np.zeros(count, np.float32), places < len(track)
    sound[there] = track[places[there]]
    return sound


def resident_bytes() -> int:
  """Memory of this process that is in RAM now; where the system does not say, its peak."""
  statm = pathlib.Path("/proc/self/statm")
  if statm.exists():
    return int(statm.read_text().split()[1]) * resource.getpagesize()
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
