"""Speech, sentences and mouth shapes."""

import concurrent.futures
import functools
import itertools
import sys
import time

import numpy as np
import pytest

from data_pipelines.clip import SAMPLE_RATE
from data_pipelines.puppets import sentences, speech
from data_pipelines.puppets.visemes import RELEASE_S, mouth_tracks, viseme_targets

GREETING = {
  "en": "the boat is very big",
  "de": "ich kaufe eine Lampe",
  "fr": "voilà le pain de maman",
  "es": "mi amiga tiene el bolso",
}


@pytest.mark.parametrize("language", speech.LANGUAGES)
def test_phones_touch_and_end_with_the_audio(language):
  said = speech.speak(GREETING[language], speech.TRAIN_VOICES[language][0])
  phones = said.phones
  assert phones[0].start_s == 0
  assert abs(phones[-1].end_s - len(said.audio) / SAMPLE_RATE) < 1e-4
  assert all(p.end_s > p.start_s for p in phones)
  assert all(a.end_s == b.start_s for a, b in itertools.pairwise(phones))
  assert any(p.stressed for p in phones)
  assert 0.85 < np.abs(said.audio).max() <= 0.9 + 1e-6


def test_every_phone_of_every_language_has_a_mouth_shape():
  unknown = (viseme_targets("?"),)
  for language in speech.LANGUAGES:
    rng = np.random.default_rng(1)
    for held_out in (False, True):
      line = sentences.sample_line(rng, language, "statement", held_out)
      for phone in speech.speak(line.text, speech.TRAIN_VOICES[language][1]).phones:
        if phone.name != speech.PAUSE:
          assert viseme_targets(phone.name) not in unknown, phone.name


def test_same_words_sound_the_same_whatever_was_said_before():
  first = speech.speak("a warm summer", "en+f2").audio  # with breath, which is noise
  speech.speak("ganz andere Wörter", "de+m1")
  time.sleep(1.1)  # the engine's own seed is the second of the clock
  speech.speak.cache_clear()
  assert np.array_equal(first, speech.speak("a warm summer", "en+f2").audio)


def test_threads_speak_one_after_the_other():
  words = [f"summer number {i}" for i in range(8)]
  say = functools.partial(speech.speak.__wrapped__, voice="en+f2")
  alone = [say(text).audio for text in words]
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    together = [said.audio for said in threads.map(say, words)]
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_array_equal(a, b)


def test_pitch_and_speed_change_the_speech():
  slow = speech.speak("over there", "en+m1", speed=120)
  fast = speech.speak("over there", "en+m1", speed=260)
  high = speech.speak("over there", "en+m1", speed=120, pitch=90)
  assert fast.seconds < 0.8 * slow.seconds
  assert not np.array_equal(high.audio, slow.audio)


@pytest.mark.parametrize("voice", ["nowhere", "en+nobody"])
def test_unknown_voice_is_named(voice):
  with pytest.raises(speech.SpeechError, match=voice.partition("+")[2] or voice):
    speech.speak("hello", voice)


def test_missing_engine_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "espeakng_loader", None)
  speech._engine_paths.cache_clear()
  speech.speak.cache_clear()
  with pytest.raises(speech.SpeechError, match=r"espeakng-loader.*lpm_jax\[data\]"):
    speech.speak("hello", "en+f1")
  speech._engine_paths.cache_clear()


def test_held_out_voices_and_sentences_are_disjoint_from_training():
  assert len(speech.LANGUAGES) >= 3
  for language in speech.LANGUAGES:
    assert not set(speech.TRAIN_VOICES[language]) & set(speech.HELD_OUT_VOICES[language])
    for of_side in (sentences.templates, sentences.slot_words):
      assert not of_side(language, False) & of_side(language, True)


def test_every_kind_of_line_can_be_said_in_every_language():
  rng = np.random.default_rng(0)
  tags = {"question": "question", "happy": "laughter", "hesitation": "hesitation"}
  for language, kind, held_out in itertools.product(
    speech.LANGUAGES, sentences.KINDS, (False, True)
  ):
    line = sentences.sample_line(rng, language, kind, held_out)
    assert "{" not in line.text
    assert kind not in tags or tags[kind] in line.tags


def test_lips_shut_for_bilabials_and_open_for_vowels():
  said = speech.speak("papa mama", "en+m1", speed=150)
  times = np.arange(0, said.seconds, 1 / 24)
  opening, _ = mouth_tracks(said, times)
  for phone in said.phones:
    middle = np.interp(0.5 * (phone.start_s + phone.end_s), times, opening)
    if phone.name[0] == "m":
      assert middle < 0.1
    if phone.stressed:
      assert middle > 0.6


def test_rounded_and_spread_vowels_differ_in_width():
  def widest(text: str) -> float:
    said = speech.speak(text, "de+m1", speed=120)
    width = mouth_tracks(said, np.arange(0, said.seconds, 1 / 24))[1]
    return width[np.abs(width).argmax()]

  assert widest("du") < -0.6
  assert widest("sie") > 0.6


def test_mouth_is_exactly_shut_in_pauses_and_around_the_speech():
  said = speech.speak("Really? I think so.", "en+f1")
  pause = max((p for p in said.phones if p.name == speech.PAUSE), key=lambda p: p.end_s - p.start_s)
  assert pause.end_s - pause.start_s > 0.2
  end = said.seconds + RELEASE_S
  opening, width = mouth_tracks(
    said, np.array([-0.2, -0.07, 0.5 * (pause.start_s + pause.end_s) + 0.03, end, end + 1])
  )
  assert (opening == 0).all()
  assert (width == 0).all()
