"""InfoSim and InfoDiverse: how much product knowledge narrations hold, by sentence vectors (section 5.2).

Both compare strings of the narrations with the product's knowledge points (`metrics.idf`). The arithmetic is
the metrics fixture's (README, sections 3 and 4). The weights of the idf file play no part: the published
code takes the one nearest point, whose weight multiplies and divides the same value (and makes it NaN where
it is 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.base import Measured, check_pairs, mean
from metrics.encoders import Encode, embed
from metrics.idf import cut_point
from metrics.words.segment import Tagged

INFO_SIM_TAGS = frozenset(("l", "n", "s", "nr", "ns", "nt", "nw", "nz", "a"))
"""jieba's tags of the words that InfoSim compares ("l": words of the user dictionary)."""

SENTENCE_CHARACTERS = 77
COVERED_ABOVE = 0.9


def info_sim(
    narrations: Sequence[str],
    points: Sequence[Sequence[str]],
    tagged: Tagged,
    encode: Encode,
    language: str = "zh",
) -> Measured:
    """InfoSim (0..1): mean over narrations of (sentence part + word part) / 2, both also components.

    points: the points of each narration's product as in the idf file, the product's name first (it is a
    point here); cut by `cut_point`, those of one character left out. A final 。 is added where it is
    missing. Sentence part: best cosine of the narration, cut to 77 characters, with a point. Word part: mean
    of the best cosines of its words with a tag of `INFO_SIM_TAGS` (all of the narration's, repeats kept;
    none: the sentence part). tagged: with the knowledge points as user dictionary. A narration whose product
    has no point that is longer takes no part (its item is None). language "en": the stop is ".", and neither
    narrations nor points are cut. Raises `ValueError` on lists that differ in length or are empty, on a blank
    narration, and where none is left.
    """
    check_pairs(narrations, points)
    if not all(text.strip() for text in narrations):
        raise ValueError("InfoSim: a narration is blank; leave such clips out")
    products = dict.fromkeys(map(tuple, points))
    cut = {
        key: [point for point in (cut_point(raw, language) for raw in key) if len(point) > 1]
        for key in products
    }
    longest = SENTENCE_CHARACTERS if language == "zh" else None
    strings = []
    for text in stopped(narrations, language):
        words = [word for word, tag in tagged(text) if tag in INFO_SIM_TAGS]
        strings.append([text[:longest], *(words or [text[:longest]])])
    vectors = embed([text for group in (*strings, *cut.values()) for text in group], encode)
    targets = {key: vectors(listed) for key, listed in cut.items() if listed}
    parts: list[tuple[float, float] | None] = []
    for group, product in zip(strings, points, strict=True):
        target = targets.get(tuple(product))
        if target is None:
            parts.append(None)
            continue
        best = (vectors(group) @ target.T).max(axis=1).astype(np.float64)
        parts.append((float(best[0]), float(best[1:].mean())))
    scored = [part for part in parts if part is not None]
    if not scored:
        raise ValueError("InfoSim: no narration's product has a knowledge point of two characters")
    return Measured(
        mean((sentence + words) / 2 for sentence, words in scored),
        [None if part is None else sum(part) / 2 for part in parts],
        {"sentence": mean(sentence for sentence, _ in scored), "words": mean(words for _, words in scored)},
    )


def stopped(narrations: Sequence[str], language: str = "zh") -> list[str]:
    """The texts whose words InfoSim takes: narrations with a final stop added where it is missing."""
    stop = "。" if language == "zh" else "."
    return [text if text.endswith(stop) else text + stop for text in narrations]


@dataclass(frozen=True)
class _Story:
    """What InfoDiverse compares: distinct strings, points, and the number of words, repeats counted."""

    strings: list[str]
    points: list[str]
    words: int


def info_diverse(
    stories: Sequence[Sequence[str]],
    points: Sequence[Sequence[str]],
    seconds: Sequence[float],
    tagged: Tagged,
    encode: Encode,
    language: str = "zh",
) -> Measured:
    """InfoDiverse: knowledge points covered per second of narrated video, mean over stories.

    stories: each story's narrations in the order of its clips, empty ones included. points: of each story's
    product as in the idf file; the first, the product's name, is no point here. seconds: time of the clips
    that have a narration, empty ones included. A story's strings are its words longer than one character, of
    any tag, each once; a narration that adds none stands for itself. A point (cut by `cut_point`) is covered
    where its best string has a cosine above 0.9 and covers no earlier point; it is given no second best.

    Components: "covered" and "points", totals over stories; "per_word", mean of covered points / words
    longer than one character, repeats counted, over the stories with such a word (left out where there is
    none). A story without narrations, points or seconds takes no part (its item is None). Raises
    `ValueError` on lists that differ in length or are empty, on seconds that are negative or not finite, and
    where no story is left.
    """
    check_pairs(stories, points)
    if len(seconds) != len(stories) or not all(0 <= time < math.inf for time in seconds):
        raise ValueError("InfoDiverse: needs one finite number of seconds, 0 or more, for each story")
    prepared = [
        _story(story, listed, tagged, language) if story and time else None
        for story, listed, time in zip(stories, points, seconds, strict=True)
    ]
    prepared = [story if story and story.points else None for story in prepared]
    scored = [story for story in prepared if story is not None]
    if not scored:
        raise ValueError("InfoDiverse: no story has narrations, knowledge points and a length in seconds")
    vectors = embed([text for story in scored for text in (*story.strings, *story.points)], encode)
    covered = [
        None if story is None else _covered(vectors(story.strings) @ vectors(story.points).T)
        for story in prepared
    ]
    per_item = [None if count is None else count / time for count, time in zip(covered, seconds, strict=True)]
    counts = [count for count in covered if count is not None]
    per_word = [count / story.words for count, story in zip(counts, scored, strict=True) if story.words]
    components = {"covered": float(sum(counts)), "points": float(sum(len(story.points) for story in scored))}
    if per_word:
        components["per_word"] = mean(per_word)
    return Measured(mean(value for value in per_item if value is not None), per_item, components)


def _story(narrations: Sequence[str], points: Sequence[str], tagged: Tagged, language: str) -> _Story:
    strings: dict[str, None] = {}
    total = 0
    for text in narrations:
        words = [word for word, _ in tagged(text) if len(word) > 1]
        total += len(words)
        new = [word for word in words if word not in strings]
        strings.update(dict.fromkeys(new or [text]))
    listed = [cut_point(point, language) for point in points[1:]]
    return _Story(list(strings), [point for point in listed if point], total)


def _covered(cosines: np.ndarray) -> int:
    """Number of points covered, from cosines [strings, points]: points in order, each string once."""
    best = cosines.argmax(axis=0)
    near = cosines[best, np.arange(cosines.shape[1])] > COVERED_ABOVE
    return len({*best[near].tolist()})
