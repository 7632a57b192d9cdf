"""Syllables and consonants of Latin words: from a dictionary, for unknown words by rule."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

LETTER_SYLLABLES = {"w": 3}
"""Syllables of a letter's name where it is not one."""

_SPELLED = "AC AI APP DC DIY GPS ID IQ IT LED OK PC SOS TV UV UVA UVB USA VIP"
SPELLED = frozenset(_SPELLED.split())
"""Words in capitals that are read letter by letter though they could be spoken."""

_UNSTRESSED = (
    "a an the and or but of to in on at by for from with as is are was were be been am it its he him his she "
    "her they them you your we our us i me my than if has have had can could will would do does"
)
UNSTRESSED = frozenset(_UNSTRESSED.split())
"""English words that a sentence runs over: their syllables are shorter."""

_OPENING = "BL BR CH CL CR DR FL FR GL GR KN KR PH PL PR SC SH SK SL SM SN SP ST SW TH TR TW WH WR"
_OPENINGS = frozenset(_OPENING.split())
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CONSONANT = re.compile(r"ght|tch|dge|ch|sh|th|ph|ck|wh|gh|ng|kn|wr|([bcdfghjklmnpqrstvwxz])\1?")


def latin_syllables(word: str) -> int:
    """Syllables of a Latin word as it is said: iPhone -> 2, USB -> 3 (letters), babycare -> 3."""
    return sum(_part_syllables(part) for part in _parts(word))


def consonants(word: str) -> int:
    """Consonant sounds of an English word, judged by its letters; of a word that is spelled, its letters."""
    return sum(
        len(part) if is_spelled(part) else len(_CONSONANT.findall(part.lower())) for part in _parts(word)
    )


def is_spelled(word: str) -> bool:
    """Whether a word is read letter by letter: without a vowel, in capitals and short, or unsayable."""
    if len(word) == 1 or not re.search(r"[aeiouy]", word.lower()):
        return True
    if not word.isupper():
        return False
    opening = re.split(r"[AEIOUY]", word)[0]
    unsayable = len(opening) > 1 and opening[:2] not in _OPENINGS
    return word in SPELLED or unsayable or (len(word) <= 3 and not _known(word.lower()))


def _parts(word: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    return _PART.findall(plain.replace("'", ""))


@lru_cache(maxsize=4096)
def _part_syllables(word: str) -> int:
    if is_spelled(word):
        return sum(LETTER_SYLLABLES.get(letter, 1) for letter in word.lower())
    import syllapy

    return max(1, syllapy.count(word))


def _known(word: str) -> bool:
    import syllapy

    return word in syllapy.WORD_DICT
