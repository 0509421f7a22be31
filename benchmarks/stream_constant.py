"""Cost of a very long session: memory, time of a chunk and compilations, early against late.

The smallest model that has every part, through the live session.
  python -m benchmarks.stream_constant --chunks=100000
"""

import argparse

import jax
import numpy as np
from tqdm import trange

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.stream import resident_bytes
from lpm_jax.streaming.session import Session, SessionSettings
from tests.streaming.small import PICTURE, make_performer


def cache_bytes(session: Session) -> int:
  """Bytes of everything that a chunk hands to the next."""
  _, performance = session.memory()
  return sum(leaf.nbytes for leaf in jax.tree.leaves(performance) if hasattr(leaf, "nbytes"))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chunks", type=int, default=100_000)
  chunks = parser.parse_args().chunks
  performer = make_performer()
  settings = SessionSettings(timings=chunks)
  session = Session(performer, PICTURE, settings=settings)
  rng = np.random.default_rng(0)
  seconds = [(0.3 * rng.normal(size=performer.samples)).astype(np.float32) for _ in range(8)]
  compiled = cache = resident = 0
  for index in trange(chunks, unit="chunk", mininterval=5):
    if index == 1_000:
      compiled, cache = performer.compiled_steps(), cache_bytes(session)
    if index == 2_000:
      resident = resident_bytes()
    session.push_partner(seconds[index % 8])
    if index % 5 < 2:
      session.push_reply(seconds[(index + 3) % 8])
      session.end_reply()
    if index % 97 == 0:
      session.push_text(f"text {index % 7}")
    session.advance()
    session.pull()
  times = np.array(session.chunk_seconds)
  early, late = np.median(times[1_000:2_000]), np.median(times[-1_000:])
  print(f"{chunks} chunks, {chunks * performer.samples / SAMPLE_RATE / 3600:.1f} hours of video")
  print(f"cache: {cache} bytes after 1,000 chunks, {cache_bytes(session)} at the end")
  grown = resident_bytes()
  print(f"resident memory: {resident / 2**20:.1f} MB after 2,000 chunks,")
  print(f"  {grown / 2**20:.1f} MB at the end, growth {grown / resident - 1:+.2%}")
  print(f"p50 of a chunk: {1e3 * early:.3f} ms second 1,000, {1e3 * late:.3f} ms last 1,000,")
  print(f"  {late / early - 1:+.1%}")
  print(f"compilations after 1,000 chunks: {performer.compiled_steps() - compiled}")
  print(session.report())


if __name__ == "__main__":
  main()
