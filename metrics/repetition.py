"""Intra-story repetition: how much a story's narrations repeat units of earlier ones (paper, section 5.2).

A unit is more than a word: single characters are joined to their left neighbours, so that units overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metrics.base import Measured, mean

STOPS = ("，", "。")


def join_single_characters(words: Sequence[str]) -> list[str]:
    """The repetition units of one narration's words (Chinese), overlapping, in order.

    From the last word to the second, a single character becomes left neighbour + itself unless one of both is
    ，or 。; the neighbour stays as it is and may be joined itself. Units longer than one character are kept;
    a single one that is left (not ，。, not the last) is kept as itself + next unit, unless it equals that
    unit's first character.
    """
    units = list(words)
    for i in range(len(units) - 1, 0, -1):
        if len(units[i]) == 1 and units[i] not in STOPS and units[i - 1] not in STOPS:
            units[i] = units[i - 1] + units[i]
    kept = []
    for i, unit in enumerate(units):
        if len(unit) > 1:
            kept.append(unit)
        elif unit not in STOPS and i + 1 < len(units) and unit != units[i + 1][0]:
            kept.append(unit + units[i + 1])
    return kept


def story_repetition(narrations: Sequence[Sequence[str]]) -> tuple[float, float] | None:
    """Repetition of one story from its narrations' units, in clip order: (published score, share).

    Published: for each unit the number of EARLIER narrations that have it, summed, divided by the number of
    units of all narrations (so it can pass 1: seven equal narrations give 3). Share: each unit counts once at
    most, 0..1. Narrations without units are dropped; None where fewer than two remain.
    """
    stories = [list(units) for units in narrations if units]
    if len(stories) < 2:
        return None
    earlier: dict[str, int] = {}
    repeated = share = 0
    for units in stories:
        counts = [earlier.get(unit, 0) for unit in units]
        repeated += sum(counts)
        share += sum(count > 0 for count in counts)
        for unit in set(units):
            earlier[unit] = earlier.get(unit, 0) + 1
    total = sum(map(len, stories))
    return repeated / total, share / total


def repetition(
    stories: Sequence[Sequence[str]],
    words: Callable[[str], Sequence[str]],
    join: Callable[[Sequence[str]], Sequence[str]] = join_single_characters,
) -> Measured:
    """Mean repetition over stories (lower is better); component "share": the same, each unit counted 0 or 1.

    stories: one list of narrations a story, in the order of its clips. words: text -> words, e.g.
    `jieba_segmenter(...).words`. join: words -> units; `list` for English, where each word is a unit (the
    joining of single characters is made for Chinese). A story with fewer than two narrations that have units
    takes no part (its item is None). Raises `ValueError` where no story is left.
    """
    scores = [story_repetition([join(words(text)) for text in story]) for story in stories]
    scored = [score for score in scores if score is not None]
    if not scored:
        raise ValueError("repetition: no story has two narrations to compare")
    return Measured(
        mean(score for score, _ in scored),
        [None if score is None else score[0] for score in scores],
        {"share": mean(share for _, share in scored)},
    )
