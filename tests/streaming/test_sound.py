"""Tracks keep what they are given, in bounds; the gate finds speech."""

import numpy as np
import pytest

from lpm_jax.streaming.gate import SpeechGate
from lpm_jax.streaming.sound import Track

RATE = 16_000


def tone(seconds: float, rate: int = RATE, loud: float = 0.3) -> np.ndarray:
  return (loud * np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * 200 / rate)).astype(
    np.float32
  )


def test_packets_come_out_as_they_went_in():
  track, sound = Track("reply", 10), tone(1.0)
  for start in range(0, len(sound), 320):
    track.push(sound[start : start + 320])
  np.testing.assert_array_equal(np.concatenate([track.take(5_000), track.take(99_999)]), sound)


def test_other_rates_are_resampled_without_seams():
  track, sound = Track("reply", 10), tone(2.0, 24_000)
  for start in range(0, len(sound), 480):
    track.push(sound[start : start + 480], 24_000)
  found = track.take(99_999)
  assert abs(len(found) - 2 * RATE) < 600  # the filter still holds the end
  np.testing.assert_allclose(found[2_000:-2_000], tone(2.0)[2_000 : len(found) - 2_000], atol=5e-3)


def test_int16_is_scaled():
  track = Track("partner", 1)
  track.push(np.array([16384, -32768], np.int16))
  np.testing.assert_array_equal(track.take(2), [0.5, -1.0])


def test_a_source_that_runs_fast_costs_sound_and_not_memory():
  track = Track("partner", 0.5)
  for _ in range(100):
    track.push(np.ones(RATE // 10, np.float32))
  assert len(track) == RATE // 2
  assert track.dropped == 100 * RATE // 10 - RATE // 2


def test_a_gap_in_the_clock_of_the_source_is_silence_of_that_length():
  track, sound = Track("partner", 5), tone(0.2)
  for at in (7.0, 7.2, 8.0):  # 0.6 s are missing
    track.push(sound, at=at)
  assert track.filled == round(0.6 * RATE)
  found = track.take(99_999)
  np.testing.assert_array_equal(found[-len(sound) :], sound)
  assert not found[2 * len(sound) : -len(sound)].any()
  assert len(found) == round(1.2 * RATE)


def test_what_was_silence_already_while_the_source_was_away_is_not_silent_twice():
  track, sound = Track("partner", 5), tone(0.2)
  track.push(sound, at=0.0)
  assert len(track.take(round(0.6 * RATE))) == len(sound)  # 0.4 s were asked for in vain
  track.push(sound, at=1.0)  # 0.8 s after the end of the first
  assert len(track) == pytest.approx(round((0.4 + 0.2) * RATE), abs=1)


def test_sound_that_comes_again_is_left_out():
  track, sound = Track("partner", 5), tone(1.0)
  track.push(sound[:8_000], at=0.0)
  track.push(sound[4_000:], at=0.25)
  track.push(sound[:4_000], at=0.0)
  np.testing.assert_array_equal(track.take(99_999), sound)
  assert track.repeated == 4_000 + 4_000


def test_small_steps_of_the_clock_add_up_and_are_seen():
  track, packet = Track("partner", 5), np.ones(320, np.float32)
  for i in range(100):
    track.push(packet, at=i * 0.021)  # 5 % less sound than time
  assert len(track) == pytest.approx(100 * 0.021 * RATE, abs=0.05 * RATE)


def test_a_clock_that_begins_anew_moves_nothing():
  track = Track("partner", 5)
  for at in (0.0, 1e6, -1e6):
    track.push(tone(0.2), at=at)
  assert (track.jumps, len(track)) == (2, 3 * round(0.2 * RATE))


def test_a_gap_at_another_rate_is_as_long():
  track = Track("partner", 5)
  for at in (0.0, 1.0):
    track.push(tone(0.5, 24_000), 24_000, at=at)
  assert len(track) == pytest.approx(1.5 * RATE, abs=600)  # the filter still holds the end


@pytest.mark.parametrize(
  ("packet", "rate", "message"),
  [
    (np.zeros((2, 4), np.float32), RATE, r"partner: found float32 \(2, 4\)"),
    (np.zeros(4, np.uint8), RATE, r"partner: found uint8 \(4,\)"),
    (np.zeros(4, np.float32), 1, "partner: rate: found 1, expected 8000"),
    (np.array([0.0, np.nan]), RATE, "partner: found samples that are not finite"),
  ],
)
def test_bad_packets_are_refused_and_leave_no_trace(packet, rate, message):
  track = Track("partner", 1)
  with pytest.raises(ValueError, match=message):
    track.push(packet, rate)
  assert not len(track)


def test_a_time_that_is_no_number_is_refused():
  with pytest.raises(ValueError, match="partner: at: found nan"):
    Track("partner", 1).push(tone(0.1), at=float("nan"))


def test_the_gate_opens_on_speech_and_closes_after_it():
  gate = SpeechGate()
  noise = 0.001 * np.random.default_rng(0).normal(size=RATE).astype(np.float32)
  assert not gate.hear(noise)
  assert gate.hear(tone(0.5))
  assert gate.hear(np.zeros(RATE // 4, np.float32))  # a pause within speech
  gate.hear(noise)
  assert not gate.open
  assert gate.ended == pytest.approx(1.5 * RATE, abs=320)


def test_the_gate_gets_used_to_a_noisy_room():
  gate = SpeechGate()
  room = 0.05 * np.random.default_rng(0).normal(size=12 * RATE).astype(np.float32)
  gate.hear(room)
  assert not gate.open
  assert gate.hear(tone(0.5, loud=0.5))


def test_the_noise_of_the_room_is_the_10th_percentile_of_the_last_ten_seconds():
  gate, rng = SpeechGate(), np.random.default_rng(0)
  levels = [0.001] * 50
  for level in rng.uniform(0.01, 0.1, 1_200).round(3):  # some are equal
    levels.append(float(level))
    assert gate._noise(levels[-1]) == pytest.approx(np.percentile(levels[-500:], 10))
