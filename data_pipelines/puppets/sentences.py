"""Short lines for puppets to say, drawn from templates in four languages.

A line is a tuple of `Part`s said one after the other with pauses between them, so that the place of
every phrase end and hesitation is known. Held-out lines use other templates and other words than
training lines.
"""

import dataclasses
import re

import numpy as np

KINDS = (
  "statement",
  "question",
  "happy",
  "hesitation",
  "short",
  "short_question",
  "backchannel",
)


@dataclasses.dataclass(frozen=True)
class Part:
  """What is said in one breath. `role`: "phrase" or "hesitation" (um, äh, euh, eh)."""

  text: str
  role: str = "phrase"


@dataclasses.dataclass(frozen=True)
class Line:
  """Parts in order and the tags of the whole: subset of question, laughter, happy, hesitation."""

  language: str
  parts: tuple[Part, ...]
  tags: frozenset[str]

  @property
  def text(self) -> str:
    return " ".join(part.text for part in self.parts)


@dataclasses.dataclass(frozen=True)
class _Bank:
  """Templates by kind, and what fills their {slots}."""

  statement: tuple[str, ...]
  question: tuple[str, ...]
  laugh: tuple[str, ...]
  short: tuple[str, ...]
  short_question: tuple[str, ...]
  slots: dict[str, tuple[str, ...]]


FILLERS = {
  "en": ("um", "uhm", "er"),
  "de": ("ähm", "äh"),
  "fr": ("euh", "heu"),
  "es": ("eh", "em"),
}

# By (language, held out): what a listener drops in while the other speaks.
BACKCHANNELS = {
  ("en", False): ("mhm", "yes", "right"),
  ("en", True): ("uh-huh", "sure"),
  ("de", False): ("mhm", "ja", "stimmt"),
  ("de", True): ("aha", "gut"),
  ("fr", False): ("mhm", "oui"),
  ("fr", True): ("ah bon", "tout à fait"),
  ("es", False): ("mhm", "sí"),
  ("es", True): ("ajá", "bueno"),
}


def _words(text: str) -> tuple[str, ...]:
  return tuple(word.strip() for word in text.split("|"))


_BANKS: dict[tuple[str, bool], _Bank] = {
  ("en", False): _Bank(
    statement=_words(
      "I {like} the {thing}|we saw a {thing} {where}|my {person} has a {quality} {thing}"
      "|the {thing} is very {quality}|you can find the {thing} {where}|this is a {quality} {thing}"
      "|{person}s always {like} {thing}s"
    ),
    question=_words(
      "do you {like} the {thing}|is the {thing} {where}|did your {person} see the {thing}"
      "|is it a {quality} {thing}|are we going {where}|what about the {thing}"
    ),
    laugh=_words(
      "ha ha ha|ha ha, what a {thing}|he he he, so {quality}|ho ho ho|ha ha, my {person}"
    ),
    short=_words(
      "yes, of course|no, thank you|maybe later|I think so|a {quality} one|oh, the {thing}"
      "|my {person}|not {where}|very {quality}"
    ),
    short_question=_words(
      "really|why not|a {thing}|you and me|is it {quality}|your {person}|{where}"
    ),
    slots={
      "like": _words("like|want|need|miss|love|buy|remember"),
      "thing": _words(
        "boat|apple|piano|book|window|camera|puppy|mountain|bicycle|pie|lamp|movie|paper|bubble|map"
        "|flower|summer|problem|coffee|river"
      ),
      "quality": _words("big|warm|funny|perfect|new|small|lovely|famous|simple|purple|open|broken"),
      "person": _words("mother|brother|friend|baby|boss|neighbour|father|partner"),
      "where": _words(
        "at home|in Paris|by the river|over there|in my room|on Monday|up here|tomorrow"
      ),
    },
  ),
  ("en", True): _Bank(
    statement=_words(
      "they {like} our {thing} again|there is another {quality} {thing}"
      "|somebody took a {thing} {where}|it seems the {person} is {quality}"
    ),
    question=_words(
      "can we {like} some {thing}s|who put the {thing} {where}|will the {person} be {quality}"
    ),
    laugh=_words("ha ha, how {quality}|he he, that {thing}|ha ha ha ha"),
    short=_words("all right then|never mind|some {thing}s|far too {quality}|the {person}, maybe"),
    short_question=_words("are you sure|the {thing}|which {person}|so {quality}"),
    slots={
      "like": _words("bring|paint|share|move"),
      "thing": _words("hammer|garden|letter|pump|melon|wheel|basket|violin|tomato|shop"),
      "quality": _words("happy|empty|beautiful|heavy|quiet|brave"),
      "person": _words("uncle|teacher|poet|farmer|family"),
      "where": _words("in Rome|at work|below the table|last week"),
    },
  ),
  ("de", False): _Bank(
    statement=_words(
      "ich {like} {thing}|wir sehen {thing} {where}|{person} braucht {thing}|heute ist es {quality}"
      "|{where} ist alles {quality}|das ist doch {quality}|am Abend wird es {quality}"
    ),
    question=_words(
      "kaufst du {thing}|ist {person} {where}|bleibt es {quality}|hast du {thing} {where}"
      "|wo ist {person}|fahren wir {where}hin"
    ),
    laugh=_words("ha ha ha|ha ha, wie {quality}|hi hi hi, {person}|ho ho, {thing}"),
    short=_words(
      "ja, genau|nein, danke|vielleicht|sehr {quality}|mit {thing}|{person} auch|na gut"
    ),
    short_question=_words("wirklich|warum|{thing}|ist es {quality}|und {person}|{where}"),
    slots={
      "like": _words("mag|suche|kaufe|habe|nehme|male"),
      "thing": _words(
        "Brot|Musik|Blumen|Bücher|Wasser|Kuchen|Papier|eine Lampe|Honig|Milch|Bananen|einen Baum"
      ),
      "quality": _words("schön|warm|groß|gemütlich|wunderbar|neu|komisch|prima|teuer"),
      "person": _words("Mama|Papa|Peter|Anna|mein Bruder|der Vater|meine Oma"),
      "where": _words("oben|zu Hause|dort|am Meer|in Bonn|im Sommer"),
    },
  ),
  ("de", True): _Bank(
    statement=_words(
      "sie bringt {thing} mit|leider bleibt {person} {quality}|überall gibt es {thing}"
    ),
    question=_words("wer malt {thing}|kommt {person} mit|war das {quality}"),
    laugh=_words("ha ha, so {quality}|he he he, {person}"),
    short=_words("aber klar|schon gut|ohne {thing}|ziemlich {quality}"),
    short_question=_words("wieso denn|ohne {thing}|wann|so {quality}"),
    slots={
      "thing": _words("Äpfel|Pilze|Butter|Farbe|Wolle|Pfeffer"),
      "quality": _words("müde|leer|bunt|berühmt|fröhlich"),
      "person": _words("Tante Maria|der Bäcker|unser Opa|Paul"),
    },
  ),
  ("fr", False): _Bank(
    statement=_words(
      "j'aime {thing}|nous avons {thing} {where}|{person} veut {thing}|c'est vraiment {quality}"
      "|{where}, il fait {quality}|voilà {thing} de {person}"
    ),
    question=_words(
      "tu aimes {thing}|{person} est {where}|c'est {quality}|vous avez {thing}|on va {where}"
    ),
    laugh=_words("ha ha ha|ha ha, c'est {quality}|hé hé hé, {person}"),
    short=_words("oui, bien sûr|non, merci|peut-être|très {quality}|avec {thing}|{person} aussi"),
    short_question=_words("vraiment|pourquoi|{thing}|et {person}|{where}"),
    slots={
      "thing": _words(
        "le pain|les pommes|un bateau|la mer|le fromage|une fleur|le vin|la lune|un banjo"
      ),
      "quality": _words("beau|froid|bon|magnifique|simple|nouveau|facile|bizarre"),
      "person": _words("maman|papa|Pierre|ma mère|mon ami|le voisin|Amélie"),
      "where": _words("à Paris|ici|au bord de l'eau|en avril|là-bas"),
    },
  ),
  ("fr", True): _Bank(
    statement=_words("elle prend {thing}|il y a {thing} partout|{person} semble {quality}"),
    question=_words("qui prend {thing}|{person} vient demain|tu es {quality}"),
    laugh=_words("ha ha, trop {quality}|ho ho ho, {person}"),
    short=_words("d'accord|tant pis|sans {thing}|assez {quality}"),
    short_question=_words("quand|sans {thing}|si {quality}"),
    slots={
      "thing": _words("du beurre|une poupée|le métro|des fraises|un parapluie"),
      "quality": _words("fatigué|content|timide|malade"),
      "person": _words("mon oncle|la boulangère|Bernard"),
    },
  ),
  ("es", False): _Bank(
    statement=_words(
      "me gusta {thing}|vamos a {where}|{person} tiene {thing}|esto es muy {quality}"
      "|hoy compro {thing}|en {where} todo es {quality}"
    ),
    question=_words("te gusta {thing}|{person} vive en {where}|es muy {quality}|quieres {thing}"),
    laugh=_words("ja ja ja|ja ja, qué {quality}|je je je, {person}"),
    short=_words("sí, claro|no, gracias|tal vez|muy {quality}|con {thing}|{person} también"),
    short_question=_words("de verdad|por qué|{thing}|y {person}|en {where}"),
    slots={
      "thing": _words(
        "el pan|la música|un libro|el mar|una manzana|el barco|la luna|mi bolso|el humo"
      ),
      "quality": _words("bueno|bonito|pequeño|famoso|nuevo|simple|amable"),
      "person": _words("mamá|papá|Pablo|mi amiga|el vecino|mi abuelo"),
      "where": _words("Madrid|casa|la playa|la oficina"),
    },
  ),
  ("es", True): _Bank(
    statement=_words("ella trae {thing}|siempre hay {thing} aquí|{person} parece {quality}"),
    question=_words("quién trae {thing}|{person} viene mañana|estás {quality}"),
    laugh=_words("ja ja, tan {quality}|jo jo jo, {person}"),
    short=_words("de acuerdo|ni modo|sin {thing}|bastante {quality}"),
    short_question=_words("cuándo|sin {thing}|tan {quality}"),
    slots={
      "thing": _words("la mesa|un tomate|el puente|agua fría|las uvas"),
      "quality": _words("cansado|feliz|ocupado|valiente"),
      "person": _words("mi tío|la maestra|Bruno"),
    },
  ),
}


def templates(language: str, held_out: bool) -> frozenset[str]:
  """All templates of one side; the two sides share none."""
  bank = _BANKS[language, held_out]
  kinds = (bank.statement, bank.question, bank.laugh, bank.short, bank.short_question)
  return frozenset(template for kind in kinds for template in kind)


def slot_words(language: str, held_out: bool) -> frozenset[str]:
  """All slot fillers of one side; the two sides share none."""
  return frozenset(word for words in _BANKS[language, held_out].slots.values() for word in words)


def _phrase(rng: np.random.Generator, bank: _Bank, templates: tuple[str, ...]) -> str:
  template = templates[rng.integers(len(templates))]
  return re.sub(
    r"\{(\w+)\}",
    lambda slot: str(rng.choice(bank.slots[slot.group(1)])),
    template,
  )


def sample_line(rng: np.random.Generator, language: str, kind: str, held_out: bool) -> Line:
  """Draws a line of one of KINDS. Raises KeyError or ValueError for unknown ones."""
  bank = _BANKS[language, held_out]
  if kind == "hesitation":
    first = _phrase(rng, bank, bank.short if rng.random() < 0.5 else bank.short_question)
    filler = Part(str(rng.choice(FILLERS[language])), "hesitation")
    last = _phrase(rng, bank, bank.short)
    parts = (Part(first + ","), filler, Part(last + "."))
    # Half of the speakers hesitate before they say anything.
    return Line(language, parts if rng.random() < 0.5 else parts[1:], frozenset({"hesitation"}))
  if kind == "happy":
    return Line(
      language, (Part(_phrase(rng, bank, bank.laugh) + "!"),), frozenset({"laughter", "happy"})
    )
  if kind in ("question", "short_question"):
    text = _phrase(rng, bank, getattr(bank, kind))
    return Line(language, (Part(text + "?"),), frozenset({"question"}))
  if kind == "backchannel":
    return Line(language, (Part(str(rng.choice(BACKCHANNELS[language, held_out]))),), frozenset())
  if kind in ("statement", "short"):
    return Line(language, (Part(_phrase(rng, bank, getattr(bank, kind)) + "."),), frozenset())
  raise ValueError(f"unknown kind of line {kind!r}, expected one of {KINDS}")
