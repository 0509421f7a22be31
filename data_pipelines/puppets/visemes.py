"""Mouth shapes from phones: dominance functions after Cohen and Massaro (1993).

Every phone pulls the mouth towards its own opening and width; the pulls overlap by tens of
milliseconds, so that the lips move before the sound (anticipation) and blur between phones. Lips
close fully for p, b and m.
"""

import functools

import numpy as np

from data_pipelines.puppets.speech import PAUSE, Phone, Utterance

ANTICIPATION_S = 0.06
RELEASE_S = 0.10
_SHORT_PAUSE_S = 0.12  # shorter ones (glottal stops, commas said fast) do not shut the mouth
_SPREAD_S = {"vowel": 0.035, "consonant": 0.025, "pause": 0.03}

# IPA symbol: (opening 0..1, width -1..1)
_VOWELS = {
  "i": (0.24, 0.95), "ɪ": (0.30, 0.60), "e": (0.42, 0.75), "ɛ": (0.58, 0.55), "æ": (0.80, 0.50),
  "a": (0.95, 0.20), "ɑ": (1.00, 0.00), "ɐ": (0.72, 0.05), "ʌ": (0.72, 0.05), "ɜ": (0.45, -0.10),
  "ɚ": (0.40, -0.15), "ə": (0.38, 0.00), "ɵ": (0.38, -0.40), "ɔ": (0.66, -0.55), "o": (0.50, -0.75),
  "ɒ": (0.76, -0.35), "ʊ": (0.30, -0.75), "u": (0.22, -1.00), "y": (0.20, -0.95),
  "ʏ": (0.26, -0.80), "ø": (0.36, -0.75), "œ": (0.52, -0.55), "ɨ": (0.24, 0.30), "ᵻ": (0.28, 0.35),
}  # fmt: skip
# IPA symbol: (opening, width, how strongly it pulls against its neighbours)
_CONSONANTS = {
  "p": (0.0, 0.0, 3.0), "b": (0.0, 0.0, 3.0), "m": (0.0, 0.0, 3.0), "f": (0.07, 0.20, 2.0),
  "v": (0.07, 0.20, 2.0), "β": (0.08, 0.0, 1.5), "w": (0.12, -0.90, 1.5), "ɥ": (0.12, -0.90, 1.5),
  "j": (0.22, 0.60, 0.8), "θ": (0.20, 0.15, 0.8), "ð": (0.22, 0.10, 0.6), "s": (0.16, 0.35, 1.0),
  "z": (0.16, 0.35, 1.0), "ʃ": (0.20, -0.55, 1.2), "ʒ": (0.20, -0.55, 1.2), "t": (0.20, 0.10, 0.6),
  "d": (0.20, 0.10, 0.6), "n": (0.24, 0.10, 0.6), "l": (0.30, 0.10, 0.5), "ɾ": (0.28, 0.10, 0.4),
  "r": (0.28, -0.10, 0.5), "ɹ": (0.26, -0.35, 0.8), "ʁ": (0.34, 0.0, 0.4), "k": (0.28, 0.05, 0.4),
  "ɡ": (0.28, 0.05, 0.4), "g": (0.28, 0.05, 0.4), "ŋ": (0.28, 0.05, 0.4), "ɲ": (0.24, 0.30, 0.6),
  "x": (0.34, 0.0, 0.4), "ç": (0.24, 0.50, 0.7), "h": (0.40, 0.0, 0.2), "ɣ": (0.30, 0.0, 0.4),
  "ɫ": (0.30, 0.0, 0.5), "ʎ": (0.24, 0.35, 0.6), "ɬ": (0.26, 0.10, 0.5),
}  # fmt: skip
_UNKNOWN = (0.30, 0.0, 0.3)
_LIPS_SHUT = frozenset("pbm")


@functools.cache
def viseme_targets(name: str) -> tuple[tuple[float, float, float, str], ...]:
  """(opening, width, pull, class) for each sound of an IPA phone; a diphthong has two.

  Modifiers (length, nasal, aspiration marks) are passed over.
  """
  found = []
  for symbol in name:
    if symbol in _VOWELS:
      found.append((*_VOWELS[symbol], 1.0, "vowel"))
    elif symbol in _CONSONANTS:
      found.append((*_CONSONANTS[symbol], "consonant"))
  return tuple(found) or ((*_UNKNOWN, "consonant"),)


def is_vowel(name: str) -> bool:
  return any(symbol in _VOWELS for symbol in name)


def mouth_tracks(utterance: Utterance, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Opening and width of the mouth at `times_s` (seconds from the start of the utterance).

  Returns mouth_open in 0..1 and mouth_width in -1..1, float32 of the shape of `times_s`; both are
  exactly 0 earlier than ANTICIPATION_S before the first sound, later than RELEASE_S after the last,
  and in pauses.
  """
  t = np.asarray(times_s, np.float64)
  weight, opening, width, sounding, shut = (np.zeros_like(t) for _ in range(5))
  for phone in utterance.phones:
    if _is_silence(phone, utterance):
      continue
    sounding = np.maximum(
      sounding, _plateau(t, phone.start_s, phone.end_s, ANTICIPATION_S, RELEASE_S)
    )
    if phone.name == PAUSE:
      continue
    for target, start, end in _sounds(phone):
      pull = target[2] * _dominance(t, start, end, _SPREAD_S[target[3]])
      stress = 1.0 if phone.stressed or target[3] == "consonant" else 0.85
      weight += pull
      opening += pull * target[0] * stress
      width += pull * target[1]
    if phone.name[0] in _LIPS_SHUT:
      shut = np.maximum(shut, _plateau(t, *_closure(phone), 0.035, 0.035))
  weight = np.maximum(weight, 1e-9)
  opening = opening / weight * sounding * (1 - shut)
  width = width / weight * sounding * (1 - 0.7 * shut)
  return opening.astype(np.float32), width.astype(np.float32)


def _is_silence(phone: Phone, utterance: Utterance) -> bool:
  at_an_end = phone in (utterance.phones[0], utterance.phones[-1])
  return phone.name == PAUSE and (at_an_end or phone.end_s - phone.start_s > _SHORT_PAUSE_S)


def _sounds(phone: Phone):
  """(target, start, end) of the sounds in a phone; a diphthong has two."""
  targets = viseme_targets(phone.name)[:2]
  if len(targets) == 1:
    return [(targets[0], phone.start_s, phone.end_s)]
  middle = phone.start_s + 0.55 * (phone.end_s - phone.start_s)
  return [(targets[0], phone.start_s, middle), (targets[1], middle, phone.end_s)]


def _closure(phone: Phone) -> tuple[float, float]:
  """When the lips are shut: m through its sound, p and b before their burst (the event's start)."""
  if phone.name[0] == "m":
    return phone.start_s, max(phone.end_s - 0.02, phone.start_s + 0.045)
  return phone.start_s - 0.045, phone.start_s + 0.005


def _dominance(t: np.ndarray, start: float, end: float, spread: float) -> np.ndarray:
  """1 over the middle of the sound, falling off exponentially on both sides."""
  inset = min(0.3 * (end - start), 0.03)
  outside = np.maximum(np.maximum(start + inset - t, t - (end - inset)), 0)
  return np.exp(-outside / spread)


def _plateau(t: np.ndarray, start: float, end: float, attack: float, release: float) -> np.ndarray:
  """1 from start to end with smooth flanks outside; 0 beyond them."""
  rise = np.clip((t - (start - attack)) / attack, 0, 1)
  fall = np.clip(((end + release) - t) / release, 0, 1)
  ramp = np.minimum(rise, fall)
  return ramp * ramp * (3 - 2 * ramp)
