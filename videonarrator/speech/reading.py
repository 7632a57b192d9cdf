"""A text as it is read aloud, and the counts that its time is made of."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from videonarrator.schema import NarratorError
from videonarrator.speech.chinese import expand_chinese
from videonarrator.speech.english import expand_english
from videonarrator.speech.syllables import UNSTRESSED, consonants, latin_syllables

STRONG = "。！？!?…．"
"""Marks of a strong pause; a full stop, too, where a blank, a quotation mark or the end follows."""

WEAK = "，、；：,;:—–（）()\n"
"""Marks of a weak pause."""

NEUTRAL_TONE = frozenset("的了着吗呢吧们么啊呀嘛")
"""Chinese characters in the neutral tone, which is shorter."""

_EXPANSIONS: dict[str, Callable[[str], str]] = {"zh": expand_chinese, "en": expand_english}
_TOKEN = re.compile(
    rf"(?P<latin>[A-Za-z\u00c0-\u024f]+(?:['’][A-Za-z]+)*)|(?P<strong>[{STRONG}]|\.(?=\s|$|[\"'”’]))"
    rf"|(?P<weak>[{WEAK}]| - )|(?P<other>\w)"
)


@dataclass(frozen=True)
class SpokenCounts:
    """What a text's time is made of. Pauses are those inside the text: something is said before and after.

    syllables: of the language itself (zh: characters). light: more of them, in the neutral tone (zh) or of
    UNSTRESSED words (en). latin: syllables of Latin words and letters in Chinese. words: stressed ones (en).
    consonants: of all words (en). weak, strong: pauses; marks in a row are one, strong where one of them is.
    """

    syllables: int = 0
    light: int = 0
    latin: int = 0
    words: int = 0
    consonants: int = 0
    weak: int = 0
    strong: int = 0

    @property
    def silent(self) -> bool:
        return not (self.syllables or self.light or self.latin)


def spoken_text(text: str, language: str) -> str:
    """`text` as it is read aloud: numbers, prices, units and signs in words (`language` zh or en).

    Latin words in Chinese stay as they are. Raises `NarratorError` for another language.
    """
    if language not in _EXPANSIONS:
        raise NarratorError(f"language {language!r} is unknown; there are {', '.join(_EXPANSIONS)}")
    return _EXPANSIONS[language](text)


@lru_cache(maxsize=8192)
def count_spoken(text: str, language: str) -> SpokenCounts:
    """The counts of a text, expanded first. Raises `NarratorError` for a language other than zh and en."""
    return count_expanded(spoken_text(text, language), language)


def count_expanded(text: str, language: str) -> SpokenCounts:
    """The counts of a text that is as `spoken_text` gives it; a digit in it counts as one syllable."""
    counts: Counter[str] = Counter()
    pause, said = "", False
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup or ""
        if kind in ("weak", "strong"):
            pause = "strong" if "strong" in (kind, pause) else kind
        elif kind == "latin" or unicodedata.category(token[0])[0] in "LN":
            if pause and said:
                counts[pause] += 1
            pause, said = "", True
            counts.update(_word_counts(token[0], kind == "latin", language))
    return SpokenCounts(**counts)


def _word_counts(word: str, latin: bool, language: str) -> dict[str, int]:
    if not latin:
        return {"light" if word in NEUTRAL_TONE else "syllables": 1}
    syllables = latin_syllables(word)
    if language == "zh":
        return {"latin": syllables}
    if word.lower() in UNSTRESSED:
        return {"light": syllables, "consonants": consonants(word)}
    return {"syllables": syllables, "words": 1, "consonants": consonants(word)}
