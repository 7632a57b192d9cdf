"""How a script fits what was asked: narration lengths, and the storyline's labels.

The published code has no script for these; lengths are asked for in the paper's prompt (section 4), labels
are its storyline (section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from metrics.base import Measured, check_pairs, mean
from videonarrator.length import count_units, length_gap, range_for_reference
from videonarrator.storyline import label_parts, unknown_parts


def length_in_range(narrations: Sequence[str], references: Sequence[str], language: str = "zh") -> Measured:
    """Share (0..1) of narrations whose length lies in the range that the prompt asks for.

    The range is the reference's own length -/+ 3 characters (zh) or 5 words (en), at least 1. Components:
    share too short, share too long, and the mean distance outside the range (characters or words; 0 inside).
    Raises `ValueError` where the lists differ in length or are empty.
    """
    check_pairs(narrations, references)
    inside, short, gaps = [], [], []
    for narration, reference in zip(narrations, references, strict=True):
        length, (low, high) = count_units(narration, language), range_for_reference(reference, language)
        inside.append(float(low <= length <= high))
        short.append(float(length < low))
        gaps.append(length_gap(length, low, high))
    value, too_short = mean(inside), mean(short)
    too_long = (len(inside) - sum(inside) - sum(short)) / len(inside)
    return Measured(value, [*inside], {"too_short": too_short, "too_long": too_long, "mean_gap": mean(gaps)})


def length_mae(narrations: Sequence[str], references: Sequence[str], language: str = "zh") -> Measured:
    """Mean absolute difference between narration and reference in length: characters (zh) or words (en).

    Component "bias": the mean difference with its sign (above 0: narrations are too long). Raises
    `ValueError` where the lists differ in length or are empty.
    """
    check_pairs(narrations, references)
    differences = [
        count_units(narration, language) - count_units(reference, language)
        for narration, reference in zip(narrations, references, strict=True)
    ]
    errors = [float(abs(difference)) for difference in differences]
    return Measured(mean(errors), [*errors], {"bias": mean(differences)})


def label_accuracy(generated: Sequence[str], references: Sequence[str]) -> Measured:
    """Share (0..1) of clips whose generated script labels are, as a set, the reference's: A+B = B+A.

    Spelling variants of the data set's labels are resolved. Components: "jaccard", the mean overlap of both
    sets, and "known", the share of generated labels made up of the twelve script labels. Raises `ValueError`
    where the lists differ in length or are empty.
    """
    check_pairs(generated, references)
    pairs = [(label_parts(a), label_parts(b)) for a, b in zip(generated, references, strict=True)]
    equal = [float(a == b) for a, b in pairs]
    overlap = mean(len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs)
    known = mean(float(not unknown_parts(label)) for label in generated)
    return Measured(mean(equal), [*equal], {"jaccard": overlap, "known": known})
