"""Cost of a very long session: memory, time of a chunk and compilations, early against late.

The smallest model that has every part, through the live session. The machine's own ups and downs
over the run are larger than what is looked for, so the session as it was after 2,000 chunks is
kept, and at the end it and the old one make chunks in turn: the ratio of their medians is what age
costs.
  python -m benchmarks.stream_constant --chunks=100000
"""

import argparse
import os
import time

import jax
import numpy as np
from tqdm import trange

from data_pipelines.clip import SAMPLE_RATE
from lpm_jax.stream import resident_bytes
from lpm_jax.streaming.session import Session, SessionSettings
from tests.streaming.small import PICTURE, make_performer

SMALL_PICTURE = PICTURE[:8, :8]
YOUNG, WARM = 2_000, 1_000  # chunks
RNG = np.random.default_rng(0)


def cache_bytes(session: Session) -> int:
  """Bytes of everything that a chunk hands to the next."""
  _, performance = session.memory()
  return sum(leaf.nbytes for leaf in jax.tree.leaves(performance) if hasattr(leaf, "nbytes"))


class Feeder:
  """Two people who talk, in noise, and a text now and then."""

  def __init__(self, samples: int):
    self.seconds = [(0.3 * RNG.normal(size=samples)).astype(np.float32) for _ in range(8)]

  def chunk(self, session: Session, index: int):
    """Pushes what chunk `index` hears, makes it and pulls it."""
    session.push_partner(self.seconds[index % 8])
    if index % 5 < 2:
      session.push_reply(self.seconds[(index + 3) % 8])
      session.end_reply()
    if index % 97 == 0:
      session.push_text(f"text {index % 7}")
    session.advance()
    session.pull()


def in_turn(young: Session, old: Session, feeder: Feeder, turns: int) -> tuple[float, float]:
  """Median seconds of a chunk of each, made in turn, the order changing."""
  for index in range(turns):
    for session in (young, old) if index % 2 else (old, young):
      feeder.chunk(session, index)
  return tuple(float(np.median(list(s.chunk_seconds)[-turns:])) for s in (young, old))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chunks", type=int, default=100_000)
  parser.add_argument("--turns", type=int, default=3_000)
  args = parser.parse_args()
  chunks, turns = args.chunks, args.turns
  performer, settings = make_performer(), SessionSettings(timings=chunks)
  feeder = Feeder(performer.samples)
  session = Session(performer, SMALL_PICTURE, settings=settings)
  begun = time.monotonic()
  for index in trange(chunks, unit="chunk", mininterval=30):
    if index == WARM:
      compiled, cache = performer.compiled_steps(), cache_bytes(session)
    if index == YOUNG:
      facts, performance = session.memory()
      performance = performer.copied(performance)
      resident = resident_bytes()
    feeder.chunk(session, index)
  minutes = (time.monotonic() - begun) / 60
  grown = resident_bytes()
  times = np.array(session.chunk_seconds)
  early, late = np.median(times[WARM:YOUNG]), np.median(times[-1_000:])
  young = Session(performer, SMALL_PICTURE, settings=settings)
  young.remember(facts, performance)
  report = session.report()
  before, after = in_turn(young, session, feeder, turns)
  hours = chunks * performer.samples / SAMPLE_RATE / 3600
  print(f"{chunks} chunks, {hours:.1f} hours of video, in {minutes:.1f} minutes,", end=" ")
  print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end")
  print(f"cache: {cache} bytes after {WARM} chunks, {cache_bytes(session)} at the end")
  print(f"resident memory: {resident / 2**20:.1f} MB after {YOUNG} chunks,", end=" ")
  print(f"{grown / 2**20:.1f} MB at the end, growth {grown / resident - 1:+.2%}")
  print(f"p50 of a chunk in turn, {turns} each: {1e3 * before:.3f} ms at {YOUNG} chunks,", end=" ")
  print(f"{1e3 * after:.3f} ms at {chunks}, {after / before - 1:+.2%}")
  print(f"p50 of a chunk in the run: {1e3 * early:.3f} ms second 1,000,", end=" ")
  print(f"{1e3 * late:.3f} ms last 1,000, {late / early - 1:+.1%}")
  print(f"compilations after {WARM} chunks: {performer.compiled_steps() - compiled}")
  print(report)


if __name__ == "__main__":
  main()
