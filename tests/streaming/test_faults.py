"""What a session does when sources, consumers or the machine misbehave, and that nothing grows."""

import tracemalloc

import numpy as np
import pytest

from lpm_jax.streaming.effort import Effort
from lpm_jax.streaming.session import Session, SessionSettings
from tests.streaming.fake import FakeClock, FakePerformer

RATE = 16_000


class Live:
  """A session in front of somebody who looks in real time, and a partner who sends packets.

  Args:
    speed: seconds of sound that the partner sends in a second.
    packet: samples of a packet.
  """

  def __init__(self, speed: float = 1.0, packet: int = 1_600, **settings):
    self.clock = FakeClock()
    self.performer = FakePerformer(self.clock)
    self.session = Session(
      self.performer,
      np.zeros((8, 8, 3), np.uint8),
      settings=SessionSettings(**settings),
      clock=self.clock,
    )
    self.speed, self.packet, self.sent, self.shown = speed, packet, 0, []
    self.due = 0.0

  def sound(self, samples: np.ndarray) -> np.ndarray:
    """What the partner's samples [S] are: a tone."""
    return 0.3 * np.sin(2 * np.pi * 200 / RATE / self.speed * samples)

  def second(self, sends: bool = True):
    """One second of showing: packets come as time goes by; a chunk that is not there is held."""
    self.session.advance()
    self.due = max(self.due, self.clock.now)
    chunk = self.session.pull()
    self.shown.append(None if chunk is None else chunk)
    self.session.advance()
    self.due += 1.0
    self.clock.now = max(self.clock.now, self.due)
    while sends and self.sent < self.clock.now * RATE * self.speed - self.packet:
      packet = self.sound(np.arange(self.sent, self.sent + self.packet))
      self.session.push_partner(packet.astype(np.float32))
      self.sent += self.packet


def run(live: Live, seconds: int):
  for _ in range(seconds):
    live.second()


@pytest.mark.parametrize("speed", [0.995, 1.005])
def test_a_partner_whose_clock_drifts_for_an_hour_is_heard_whole_and_soon(speed):
  live = Live(speed)
  run(live, 3_600)
  report = live.session.report()
  assert report["dropped_partner"] == 0
  assert report["waiting_partner_p95"] < 1.5  # a chunk, and three packets of 0.1 s
  assert report["waiting_partner_p100"] < 1.6
  assert report["partner_missing"] < RATE  # while it begins
  assert report["partner_bent"] > 10.0  # 0.5 % of an hour are 18 s
  heard = np.concatenate(live.performer.heard[100:])
  assert np.abs(np.diff(heard)).max() < 0.3 * 2 * np.pi * 200 / RATE * 1.2  # no step, no gap


def test_without_bending_the_same_drift_fills_the_track_to_its_bound():
  live = Live(1.005, bend=0.0)
  run(live, 900)
  assert live.session.report()["dropped_partner"] > 0
  assert live.session.waiting_seconds()["partner"] <= live.session.settings.partner_seconds


def test_a_partner_in_time_is_heard_bit_for_bit():
  live = Live()
  live.sound = lambda samples: samples / 2**24  # a sample knows its number
  for _ in range(3):
    live.second(sends=False)
  live.sent = round(live.clock.now * RATE)  # begins to speak
  run(live, 80)
  heard = np.concatenate(live.performer.heard[30:])
  np.testing.assert_array_equal(np.diff(heard * 2**24), 1)


def test_a_partner_at_a_wrong_rate_is_bounded_and_named(caplog):
  live = Live(3.0)  # 48 kHz, called 16 kHz
  run(live, 60)
  report = live.session.report()
  assert report["partner_speed"] == pytest.approx(3.0, rel=0.05)
  assert report["waiting_partner_p100"] <= 3.0
  assert report["dropped_partner"] == pytest.approx(2 * 60, rel=0.1)
  assert "is it 48000 Hz?" in caplog.text


def test_a_partner_in_time_and_a_stalled_consumer_are_no_wrong_rate(caplog):
  live = Live()
  run(live, 30)
  live.clock.now += 30.0  # nobody pulls; the partner goes on
  live.due = live.clock.now
  run(live, 30)
  assert live.session.report()["partner_speed"] == pytest.approx(1.0, abs=0.05)
  assert "is it" not in caplog.text


def test_a_partner_that_stops_for_a_while_is_silence_and_comes_back():
  live = Live()
  run(live, 20)
  for _ in range(10):
    live.second(sends=False)
  live.sent = round(live.clock.now * RATE)  # what was not sent is lost
  run(live, 20)
  assert all(chunk is not None for chunk in live.shown)
  assert live.session.report()["partner_missing"] == pytest.approx(10 * RATE, abs=2.5 * RATE)
  assert live.session.report()["waiting_partner"] <= 1.3


def late(slowness: float, **settings) -> Live:
  """A session in good time for 10 s, then on a machine that is slower, for 40 s."""
  live = Live(degrade=True, **settings)
  run(live, 10)
  live.performer.slowness = slowness
  run(live, 40)
  return live


def efforts(live: Live, of: slice) -> set[Effort]:
  return {chunk.effort for chunk in live.shown[of] if chunk is not None}


@pytest.mark.parametrize(
  ("slowness", "effort", "holds"),
  [(1.5, Effort.FULL, 0), (2.2, Effort.SHORT, 1), (3.0, Effort.COARSE, 1)],
)
def test_late_chunks_get_less_work_before_any_frame_is_held(slowness, effort, holds):
  live = late(slowness)
  assert efforts(live, slice(0, 10)) == {Effort.FULL}
  assert efforts(live, slice(20, 50)) == {effort}
  assert live.session.report()["effort"] == effort.name.lower()
  assert live.session.counts.late <= holds  # the chunk that was already begun


def test_when_the_least_work_is_too_much_the_frame_is_held_and_counted():
  live = late(5.0)
  assert efforts(live, slice(20, 50)) == {Effort.COARSE}
  slow = live.due - 10.0
  assert slow > 50.0  # 1.5 s a chunk: the show takes longer, and nothing of it is skipped
  indices = [chunk.index for chunk in live.shown if chunk is not None]
  assert indices == list(range(len(indices)))


def test_full_effort_is_back_as_soon_as_the_machine_is():
  live = late(2.2)
  live.performer.slowness = 1.0
  run(live, 10)
  assert efforts(live, slice(55, 60)) == {Effort.FULL}


def test_one_slow_chunk_costs_the_next_three_and_no_more():
  live = Live(degrade=True)
  run(live, 10)
  live.performer.slowness = 1.9
  run(live, 1)
  live.performer.slowness = 1.0
  run(live, 8)
  assert live.session.counts.short + live.session.counts.coarse <= 3
  assert live.shown[-1].effort is Effort.FULL


def test_without_degrade_every_chunk_is_whole_however_late():
  live = Live()
  live.performer.slowness = 4.0
  run(live, 20)
  assert efforts(live, slice(0, 20)) == {Effort.FULL}


def test_a_performer_that_was_not_warmed_up_cannot_degrade():
  clock = FakeClock()
  performer = FakePerformer(clock)
  performer.effort_seconds = {Effort.FULL: 0.5}
  with pytest.raises(ValueError, match="degrade: found a performer not warmed up with COARSE, SHO"):
    Session(performer, np.zeros((8, 8, 3)), settings=SessionSettings(degrade=True), clock=clock)


def test_frames_and_sound_that_were_pulled_are_of_one_length():
  live = Live()
  run(live, 100)
  assert live.session.report()["audio_video_offset"] == pytest.approx(0, abs=1e-6)
  live.session.pull()
  live.session._shown += 3  # three frames more than sound
  assert live.session.report()["audio_video_offset"] == pytest.approx(3 / 24)


def test_nothing_grows_over_thousands_of_chunks_with_every_fault():
  live = Live(1.02, timings=256)
  live.performer.heard = Forgetful()
  live.shown = Forgetful()

  def trouble(rounds: int):
    for i in range(rounds):
      live.second()
      live.session.push_partner(np.zeros(0, np.float32))
      live.session.push_partner(np.ones(320, np.float32), 24_000, at=float(i % 7))
      live.session.push_text(f"{i} " + "x" * 10_000)
      live.session.push_reply(np.ones(320, np.float32))
      if i % 5 == 0:
        live.session.interrupt()
      if i % 3 == 0:
        live.session.advance()
        live.session.advance()

  tracemalloc.start()
  trouble(300)
  before = tracemalloc.get_traced_memory()[0]
  trouble(400)
  grown = tracemalloc.get_traced_memory()[0] - before
  tracemalloc.stop()
  assert grown < 50_000, grown


class Forgetful(list):
  """A list that keeps nothing."""

  def append(self, item):
    pass
