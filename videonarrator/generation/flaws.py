"""What is wrong with a narration: said in a loop, unreadable, empty, or said before.

The thresholds lie above anything in the narrations of real videos, where a word is said up to three times in
a row and a phrase of up to six characters twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from videonarrator.prompt import ADDED_TOKENS

CHARACTER_LOOPS = {1: 6, 2: 5, 3: 4} | dict.fromkeys(range(4, 10), 3) | dict.fromkeys(range(10, 21), 2)
"""Length of a unit in characters -> how often it must be said in a row to be a loop."""

WORD_LOOPS = {1: 5, 2: 4} | dict.fromkeys(range(3, 6), 3) | dict.fromkeys(range(6, 9), 2)
"""The same for units of words."""

LONGEST_NUMBER = 12
"""Digits that may be equal in a row: 1000000 is no loop."""

SAID_BEFORE = {"zh": 8, "en": 4}
"""A narration of more characters (words) than this may not be said twice in a video."""

MARKERS = re.compile(
    "|".join(map(re.escape, ADDED_TOKENS))
    + r"|镜头\s*\d+\s*[/／]\s*\d+|字数要求|剧本类型|word count requirement|visual scene:"
    r"|\b(?:video shot|narrative) \d+:|</?s>|<unk>|\[PAD\]|<\|[^|<>]*\|>",
    re.IGNORECASE,
)
"""What only prompts hold, and a tokenizer's special tokens."""


def flaws_of(text: str, language: str, earlier: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of what is wrong with a narration; () where it is in order.

    empty: no letter, digit or ideograph. repeats: a unit said again and again, whatever marks stand between.
    unreadable: replacement or control characters, or a prompt's markers. said before: equal to one of the
    `earlier` narrations of the video, apart from its marks; short ones may be.
    """
    words = _words(text, language)
    flaws = {
        "empty": not words,
        "repeats": _repeats(text, words, language),
        "unreadable": any(map(_unreadable, text)) or MARKERS.search(text) is not None,
        "said before": len(words) > SAID_BEFORE[language]
        and any(_words(other, language) == words for other in earlier),
    }
    return tuple(name for name, found in flaws.items() if found)


def _words(text: str, language: str) -> list[str]:
    """The characters (zh) or words (en) of a text without its marks, in lower case."""
    units = text.casefold().split() if language == "en" else text.casefold()
    plain = ("".join(filter(str.isalnum, unit)) for unit in units)
    return [unit for unit in plain if unit]


def _repeats(text: str, words: list[str], language: str) -> bool:
    if re.search(r"([^\w\s])\1{5}", text):  # a run of one mark
        return True
    if language != "en":
        return _loops("".join(words), CHARACTER_LOOPS)
    numbers = {word: chr(0x10000 + place) for place, word in enumerate(dict.fromkeys(words))}
    return _loops("".join(numbers[word] for word in words), WORD_LOOPS) or any(
        _loops(word, CHARACTER_LOOPS) for word in numbers
    )


def _loops(units: str, often: Mapping[int, int]) -> bool:
    """Whether `units` (one character each) hold a unit of some length that is said too often in a row."""
    for length, times in often.items():
        for run in re.finditer(rf"(.{{{length}}})\1{{{times - 1},}}", units, re.DOTALL):
            if len(run[0]) > LONGEST_NUMBER or not run[0].isdecimal():
                return True
    return False


def _unreadable(character: str) -> bool:
    return character in "\ufffd\ufeff" or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
