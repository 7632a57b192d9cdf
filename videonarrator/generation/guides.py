"""What may stand in a line: anything, one of the script labels, or a narration of a length that is given."""

from __future__ import annotations

import math
import re
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from videonarrator.clip_inputs import encode_text
from videonarrator.generation.endings import best_cut, closed, far_enough, may_end
from videonarrator.generation.labels import LabelTrie
from videonarrator.generation.line import Guide, Line
from videonarrator.length import count_units

_FOLLOWING = range(0x80, 0xC0)
"""Bytes that stand in a character behind its first."""

CLOSING = {"zh": "。！？", "en": ".!?"}

RATHER = math.log(0.5)
"""Log-likelihood of the line's end above which nothing else is as likely."""

UNLIKELY = math.log(0.01)
"""Log-likelihood of the end below which a narration is not well ended where it is cut."""

MOST_BARRED = 4
"""Ids that are taken back at one place before the line goes on behind the next one, whatever it is."""


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer's ids a guide must know.

    stops end a line. closing: of closing marks. unwritable [rows of the logits] of bool: ids that no
    narration holds (special ones, texts with a line break in them, rows without a token, bytes that begin no
    character); unwritable_or_end: the stops, too. bytes: ids of single bytes -> the byte.
    """

    stops: tuple[int, ...]
    closing: tuple[int, ...]
    unwritable: Tensor
    unwritable_or_end: Tensor
    bytes: dict[int, int]

    def unfinished(self, written: Sequence[int]) -> bytes:
        """The bytes at the end of `written` that are the beginning of a character."""
        decoder = getincrementaldecoder("utf-8")("replace")
        tail = list(takewhile(self.bytes.__contains__, reversed(written)))[3::-1]
        decoder.decode(bytes(self.bytes[token] for token in tail))
        return decoder.getstate()[0]

    def continuing(self, unfinished: bytes) -> list[int]:
        """Ids of the bytes that can go on with a character."""
        return [token for token, byte in self.bytes.items() if _begins_character(unfinished + bytes([byte]))]


@cache
def _begins_character(some: bytes) -> bool:
    """Whether bytes are a character that can be printed, or can become one."""
    if some[0] > 0xF0:  # no character is assigned there
        return False
    try:
        text = getincrementaldecoder("utf-8")().decode(some)
    except UnicodeDecodeError:
        return False
    return text.isprintable() if text else any(_begins_character(some + bytes([one])) for one in _FOLLOWING)


def vocabulary_of(
    tokenizer: Any, stops: Sequence[int], rows: int, language: str, device: torch.device
) -> Vocabulary:
    """rows: of the language model's logits."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    broken = [
        index
        for index, piece in enumerate(pieces)
        if ("\n" in piece or "Ċ" in piece or piece == "<0x0A>") and "\n" in tokenizer.decode([index])
    ]
    unwritable = torch.zeros(rows, dtype=torch.bool)
    unwritable[[*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *broken]] = True
    unwritable[len(tokenizer) :] = True
    found = [(index, re.fullmatch("<0x([0-9A-F]{2})>", piece)) for index, piece in enumerate(pieces)]
    single = {index: int(match[1], 16) for index, match in found if match}
    unwritable[[index for index, byte in single.items() if not _begins_character(bytes([byte]))]] = True
    unwritable[list(stops)] = False
    marks = [encode_text(mark, tokenizer) for mark in CLOSING[language]]
    closing = [ids[0] for ids in marks if len(ids) == 1] or [marks[0][0]]
    ended = unwritable.clone()
    ended[list(stops)] = True
    return Vocabulary(tuple(stops), tuple(closing), unwritable.to(device), ended.to(device), single)


class UpToStop(Guide):
    """Anything, until an id that ends the line or so many tokens (the published decoding)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def done(self, written: Sequence[int]) -> bool:
        """See `Guide`."""
        return len(written) >= self.limit


class OneOfLabels(Guide):
    """A label of the trie, up to its end."""

    def __init__(self, trie: LabelTrie, stops: Sequence[int]) -> None:
        self.trie, self.stops = trie, list(stops)

    def only(self, written: Sequence[int]) -> Sequence[int]:
        """See `Guide`."""
        return [*self.trie.following(written), *(self.stops if self.trie.may_end(written) else ())]

    def done(self, written: Sequence[int]) -> bool:
        """See `Guide`."""
        return self.trie.complete(written)


class WithinLength(Guide):
    """A narration of `low` to `high` characters (words), ended by a closing mark.

    The line may not end before: what it would rather end behind than go on (a sentence's end, mostly) is
    taken back, and the next likeliest is written there. One that does not end by itself is written on past
    `high`, freely, until it is settled where its words end; then the best place to end it is looked for.
    """

    def __init__(self, low: int, high: int, language: str, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self.low, self.high, self.language = low, high, language
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.judged = (vocabulary.stops, vocabulary.closing)
        self.limit = (6 if language == "en" else 3) * (high + 12)  # a character takes three bytes at most
        self.texts = [""]
        self.strained = False
        """Whether the narration, see `outcome`, ends where the model would hardly end it."""
        self.barred: dict[tuple[int, ...], list[int]] = {}  # what was taken back, by what stood before it

    def only(self, written: Sequence[int]) -> Sequence[int] | None:
        """See `Guide`."""
        unfinished = self.vocabulary.unfinished(written)
        return self.vocabulary.continuing(unfinished) if unfinished else None

    def never(self, written: Sequence[int]) -> Tensor:
        """See `Guide`."""
        text = self._text(written)
        over = count_units(text.strip(), self.language) > self.high
        ends = over or may_end(text, self.low, self.high, self.language)
        never = self.vocabulary.unwritable if ends else self.vocabulary.unwritable_or_end
        if barred := self.barred.get(tuple(written)):
            never = never.clone()
            never[barred] = True
        return never

    def back(self, written: Sequence[int], judged: Sequence[float]) -> bool:
        """See `Guide`."""
        if not written or judged[0] < RATHER or written[-1] in self.vocabulary.bytes:
            return False
        text = self._text(written)
        if count_units(closed(text, self.language), self.language) >= self.low:
            return False
        barred = self.barred.setdefault(tuple(written[:-1]), [])
        if len(barred) >= MOST_BARRED:
            return False
        mark = written[-1] in self.vocabulary.closing
        barred += self.vocabulary.closing if mark else [written[-1]]
        return True

    def done(self, written: Sequence[int]) -> bool:
        """See `Guide`."""
        return len(written) >= self.limit or far_enough(self._text(written), self.high, self.language)

    def outcome(self, line: Line) -> tuple[str, float]:
        """The narration, and the mean log-likelihood of its tokens, its end's included."""
        whole, number = self._text(line.written), len(line.written)
        ends, closes = ([one[group] for one in line.judged] for group in (0, 1))
        if line.ended and may_end(whole, self.low, self.high, self.language):
            return closed(whole, self.language), _mean(line.own[:number], ends[number])
        self.texts = self.texts[: number + 1]
        cut = best_cut(self.texts, self.language, self.low, self.high, ends, closes)
        self.strained = cut is None or cut.score < UNLIKELY
        if cut is None:
            return closed(whole, self.language), _mean(line.own[:number])
        return cut.text, _mean(line.own[: cut.tokens], cut.score)

    def _text(self, written: Sequence[int]) -> str:
        """The text of what is written; `texts` holds that of each of its beginnings."""
        del self.texts[len(written) + 1 :]
        for end in range(len(self.texts), len(written) + 1):
            self.texts.append(self.tokenizer.decode(list(written[:end]), skip_special_tokens=True))
        return self.texts[len(written)]


def _mean(tokens: Sequence[float], end: float = -math.inf) -> float:
    """Of the tokens' log-likelihoods and the end's, where that is known."""
    known = [*tokens, end] if end > -math.inf else list(tokens)
    return sum(known) / max(1, len(known))
