"""Which token may follow while a script label is written: a trie of the labels and their "+" combinations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import perm
from typing import Any

from videonarrator.clip_inputs import encode_text
from videonarrator.schema import NarratorError

MOST_STRINGS = 20_000
"""A long list of labels is combined in fewer parts, so that no more strings than this are tokenised."""


@dataclass
class _Place:
    """following: id -> the place it leads to. may_end: what is written so far is a whole label."""

    following: dict[int, _Place] = field(default_factory=dict)
    may_end: bool = False


class LabelTrie:
    """The ids of every label and of every combination of distinct labels in any order, joined by "+".

    Each string is tokenised as a whole, as training did. labels: the twelve script labels, or the user's own
    list; parts: most labels in a combination (fewer where there are very many labels). Raises
    `NarratorError` naming a label that cannot be used.
    """

    def __init__(self, labels: Sequence[str], tokenizer: Any, parts: int = 3) -> None:
        _check(labels)
        self.parts = min(parts, len(labels))
        while self.parts > 1 and sum(perm(len(labels), n) for n in range(1, self.parts + 1)) > MOST_STRINGS:
            self.parts -= 1
        self._start = _Place()
        for text in combinations(labels, self.parts):
            ids = encode_text(text, tokenizer)
            back = tokenizer.decode(ids, skip_special_tokens=True)
            if back != text:
                raise NarratorError(
                    f"script label {text!r} becomes {back!r} in the model's tokenizer: choose another wording"
                )
            place = self._start
            for token in ids:
                place = place.following.setdefault(token, _Place())
            place.may_end = True

    def following(self, written: Sequence[int]) -> tuple[int, ...]:
        """The ids that may follow those `written` so far; () where the label is complete."""
        return tuple(self._at(written).following)

    def may_end(self, written: Sequence[int]) -> bool:
        """Whether the label may end after `written`."""
        return self._at(written).may_end

    def complete(self, written: Sequence[int]) -> bool:
        """Whether only the line's end may follow `written`."""
        return not self._at(written).following

    def _at(self, written: Sequence[int]) -> _Place:
        """Raises ValueError where no label begins so."""
        place: _Place | None = self._start
        for token in written:
            place = place.following.get(token)
            if place is None:
                raise ValueError(f"no label begins with the ids {list(written)}")
        return place


def combinations(labels: Sequence[str], parts: int) -> Iterator[str]:
    """Every label, then every "+" combination of 2 to `parts` distinct labels, in any order."""
    for count in range(1, parts + 1):
        yield from map("+".join, permutations(labels, count))


def _check(labels: Sequence[str]) -> None:
    if not labels:
        raise NarratorError("the list of script labels is empty: give at least one label")
    for number, label in enumerate(labels, 1):
        wrong = ""
        if not label.strip():
            wrong = "is empty"
        elif len(label.splitlines()) > 1 or label != label.strip():
            wrong = "has a line break, or blanks at its ends"
        elif "+" in label:
            wrong = 'has a "+", which joins labels: list its parts, they are combined by themselves'
        elif label in labels[: number - 1]:
            wrong = "stands in the list twice"
        if wrong:
            raise NarratorError(f"script label {number} of {len(labels)}, {label!r}, {wrong}")
