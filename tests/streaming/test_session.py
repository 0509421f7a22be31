"""The session: states, boundaries, interruptions, faults, and equality with the offline run."""

import numpy as np
import pytest

from lpm_jax.streaming.session import Session, SessionSettings, State
from tests.streaming.small import PICTURE, make_performer
from tests.streaming.test_sound import tone

SECONDS = 0.5
SAMPLES = 8_000


def make_session(**settings) -> Session:
  return Session(make_performer(), PICTURE, settings=SessionSettings(**settings))


def next_chunk(session: Session):
  session.advance()
  return session.pull()


def test_states_follow_the_sound():
  session = make_session()
  assert session.state is State.WARM_UP
  assert next_chunk(session).state is State.IDLE
  session.push_partner(tone(SECONDS))
  assert next_chunk(session).state is State.LISTENING
  session.push_reply(tone(SECONDS))
  session.end_reply()
  assert next_chunk(session).state is State.RESPONDING
  for _ in range(2):
    chunk = next_chunk(session)
  assert chunk.state is State.IDLE


def test_packets_of_20_ms_give_the_frames_of_the_offline_run():
  speak, listen = tone(3 * SECONDS), tone(3 * SECONDS, loud=0.1)[::-1].copy()
  performer, expected = make_performer(), []
  state, _ = performer.begin(PICTURE)
  for start in range(0, len(speak), SAMPLES):
    own = slice(start, start + SAMPLES)
    state, frames, _ = performer.step(state, speak[own], listen[own], "")
    expected.append(frames)
  session, found = make_session(), []
  for start in range(0, len(speak), 320):
    session.push_reply(speak[start : start + 320])
    session.push_partner(listen[start : start + 320])
    if (start + 320) % SAMPLES == 0:
      found.append(next_chunk(session).frames)
  np.testing.assert_array_equal(found, expected)


def test_text_changes_at_the_boundary_of_a_chunk():
  calm, changed = make_session(), make_session()
  np.testing.assert_array_equal(next_chunk(calm).frames, next_chunk(changed).frames)
  changed.push_text("smiles")
  chunk = next_chunk(changed)
  assert chunk.text == "smiles"
  assert (chunk.frames != next_chunk(calm).frames).any()


def test_sound_and_frames_are_of_one_length():
  session = make_session()
  session.push_reply(tone(0.7))
  session.end_reply()
  chunks = [next_chunk(session) for _ in range(3)]
  for i, chunk in enumerate(chunks):
    assert (chunk.index, chunk.seconds) == (i, i * SECONDS)
    assert len(chunk.frames) / 24 == len(chunk.reply) / 16_000 == SECONDS
  heard = np.concatenate([chunk.reply for chunk in chunks])
  np.testing.assert_array_equal(heard[: round(0.7 * 16_000)], tone(0.7))
  assert not heard[round(0.7 * 16_000) :].any()


def test_an_interruption_goes_back_to_what_was_seen():
  """The stream after it is the one that never had the dropped chunks."""
  session, plain = make_session(look_ahead=3), make_session()
  for each in (session, plain):
    each.push_partner(tone(2 * SECONDS, loud=0.1))
    each.push_reply(tone(SECONDS))
  session.push_reply(tone(4 * SECONDS))
  for _ in range(3):
    session.advance()
  np.testing.assert_array_equal(session.pull().frames, next_chunk(plain).frames)
  assert session.interrupt() == pytest.approx(4 * SECONDS)
  assert session.ready == 0
  plain.interrupt()
  for _ in range(2):
    found, expected = next_chunk(session), next_chunk(plain)
    np.testing.assert_array_equal(found.frames, expected.frames)
    assert (found.index, found.state) == (expected.index, expected.state)
    assert not found.reply.any()


def test_no_chunk_is_made_beyond_the_look_ahead():
  session = make_session(look_ahead=2)
  assert [session.advance() for _ in range(4)] == [True, True, False, False]


def test_a_consumer_that_stops_pulling_costs_a_bounded_amount():
  session = make_session(partner_seconds=1.0)
  for _ in range(50):
    session.push_partner(tone(SECONDS))
    session.advance()
  assert session.ready == 1
  assert session.waiting_seconds()["partner"] == 1.0
  assert session.report()["dropped_partner"] == pytest.approx(50 * SECONDS - 1.0 - SECONDS)


def test_a_partner_that_stops_is_silence():
  session = make_session()
  session.push_partner(tone(0.3))
  chunk = next_chunk(session)
  assert not chunk.partner[round(0.3 * 16_000) :].any()
  assert session.counts.partner_missing == SAMPLES - round(0.3 * 16_000)


def test_waiting_for_the_partner_does_not_starve_the_consumer():
  session = make_session(look_ahead=2)
  session.push_partner(tone(0.1))
  assert session.advance(wait=True)  # nothing is ready: do not wait
  assert not session.advance(wait=True)
  session.push_partner(tone(SECONDS))
  assert session.advance(wait=True)


def test_a_late_reply_lets_the_character_idle_until_it_comes():
  session = make_session(reply_start=0.25)
  session.push_reply(tone(0.1))
  chunk = next_chunk(session)
  assert chunk.state is State.IDLE
  assert not chunk.reply.any()
  session.push_reply(tone(0.4)[: round(0.4 * 16_000)])
  assert next_chunk(session).state is State.RESPONDING


def test_a_pull_without_a_chunk_is_counted():
  session = make_session()
  assert session.pull() is None
  assert session.report()["late"] == 1


def test_a_reply_that_is_too_long_is_refused_whole():
  session = make_session(reply_seconds=1.0)
  with pytest.raises(ValueError, match="reply: found 1.5 s waiting, expected at most 1"):
    session.push_reply(tone(1.5))
  assert session.waiting_seconds()["reply"] == 0


def test_a_text_of_10000_characters_is_cut():
  session = make_session(text_characters=100)
  session.push_text("x" * 10_000)
  assert len(next_chunk(session).text) == 100
  assert session.counts.texts_cut == 1


def test_a_chunk_that_is_not_finite_is_held_and_forgotten(monkeypatch):
  session, performer = make_session(), make_performer()
  good = next_chunk(session)
  step = performer.step

  def broken(*args):
    performance, frames, _ = step(*args)
    return performance, frames, False

  monkeypatch.setattr(performer, "step", broken)
  held = next_chunk(session)
  monkeypatch.undo()
  assert held.held
  assert (held.frames == good.frames[-1]).all()
  after = next_chunk(session)
  np.testing.assert_array_equal(after.frames, next_chunk(make_session()).frames)
  assert session.report()["not_finite"] == 1


def test_without_references_the_picture_is_the_reference():
  empty = Session(make_performer(), PICTURE, references=[])
  named = Session(make_performer(), PICTURE, references=[(PICTURE, 0, 0)])
  np.testing.assert_array_equal(next_chunk(empty).frames, next_chunk(named).frames)


def test_a_report_has_every_time_and_depth():
  session = make_session(look_ahead=2)
  session.push_partner(tone(2 * SECONDS))
  for _ in range(3):
    session.advance()
  session.pull()
  report = session.report()
  for name in ("chunk_p50", "chunk_p95", "chunk_p99", "first_frame"):
    assert 0 < report[name] < 600, name
  assert report["audio_video_offset"] == 0
  assert (report["ready"], report["ready_p100"]) == (1, 1)
  assert report["waiting_partner_p100"] == 2 * SECONDS


def test_the_time_from_a_question_to_its_answer():
  session = make_session()
  session.push_partner(tone(SECONDS))
  session.push_partner(np.zeros(3 * SAMPLES, np.float32))
  for _ in range(3):
    next_chunk(session)
  session.push_reply(tone(SECONDS))
  next_chunk(session)
  assert session.report()["response_p50"] == pytest.approx(2 * SECONDS, abs=0.05)
