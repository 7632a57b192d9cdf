"""Where a narration that was written too far may end, and how it is closed there.

A line is written freely past the upper bound. Then every place in range is looked at where a word ends by
the segmentation of all that was written, and the likeliest is taken. Chinese is counted in characters and
segmented by jieba, English in words between blanks. No torch.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from videonarrator.length import count_units

CLOSING_MARKS = {"zh": "。！？…!?", "en": ".!?…"}
WEAK_MARKS = {"zh": "，、；：—–-～~·,;:.", "en": ",;:-–—"}
COMMAS = {"zh": "，、；：,;:", "en": ",;:"}
FULL_STOP = {"zh": "。", "en": "."}
CLOSERS = "”’」』）)】》〉]\"'"
"""Quotes and brackets that may stand behind a closing mark."""

NATURAL = 3.0
"""Added to the score of a place where a sentence of the model's own ends. No log-likelihood is above 0: a
place where the line's end had at least one chance in twenty (e^-3) is taken before any within a sentence."""

SETTLED = {"zh": 8, "en": 3}
"""Characters (words) past the upper bound after which the words before it no longer change."""

PAIRS = {"zh": "“”‘’《》〈〉（）()【】「」『』[]", "en": "“”()[]"}  # in English ’ is an apostrophe
WESTERN = r"[^\W_\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # letters and digits
RUNS = {
    "zh": re.compile(rf"{WESTERN}+(?:[ .,+\-/&'’_:×~]?{WESTERN}+)*[%‰°℃+]?"),
    "en": re.compile(r"[^\W_]+(?:[.,'’:/&+\-@_][^\W_]+)*[%+]?"),
}
"""What is never cut, whatever the segmentation: Latin words, names, numbers."""

DANGLING = {
    "zh": "的 地 得 和 与 跟 同 及 以及 或 或者 而 而且 且 并 并且 但 但是 不过 因为 所以 如果 虽然 为了 "
    "把 被 将 让 给 对 对于 为 从 向 往 由 由于 在 于 以 比 是 就是 也是 还是 都是 更是 有 没 不 很 太 更 "
    "最 非常 特别 十分 还 也 都 就 又 再 才 只 只要 只有 能 会 要 想 可以 能够 一 二 两 三 几 这 那 每 各 该 "
    "其 某 了一 一个 一款 一种 这款 那款 这种 每个",
    "en": "a an the this these those my your our their its his her and or but nor so if because that which "
    "who whose while when where as than of to in into on onto at by for from with without over under about "
    "between through is are was were be been am has have had do does did can could will would shall should "
    "may might must not very it's that's there's here's what's let's we're you're they're i'm we've you've "
    "i've we'll you'll it'll mr. mrs. ms. dr. no. vs.",
}
"""Words that a narration does not end with unless no other place is left."""

_DANGLING = {language: frozenset(words.split()) for language, words in DANGLING.items()}
_BREAK = {"zh": re.compile("[。！？…，、；：—!?;]"), "en": re.compile(r"[.!?…,;:–—-]$")}


@dataclass(frozen=True)
class Cut:
    """A place where a line may end.

    tokens: how many of its ids are kept; text: the closed narration; score: log-likelihood of the end there
    (-inf: not known); natural: the text ended with a closing mark by itself.
    """

    tokens: int
    text: str
    score: float
    natural: bool


def closed(text: str, language: str) -> str:
    """`text` with a closing mark at its end: its own, or a full stop in place of weak marks; "" stays "".

    Commas and blanks before its own mark, or between several, are left out.
    """
    text = text.strip()
    if not ends_closed(text, language):
        text = _body(text, language)
        if text and not ends_closed(text, language):
            text += FULL_STOP[language]
    marks, commas = re.escape(CLOSING_MARKS[language]), rf"\s{COMMAS[language]}"
    end = re.search(rf"[{commas}{marks}]*[{marks}][{re.escape(CLOSERS)}]*$", text)
    if end:
        text = text[: end.start()] + re.sub(f"[{commas}]", "", end[0])
    return re.sub("。{2,}$", "。", text)


def ends_closed(text: str, language: str) -> bool:
    """Whether `text` ends with a closing mark, quotes and brackets behind it left aside."""
    return text.rstrip(CLOSERS).endswith(tuple(CLOSING_MARKS[language]))


def may_end(text: str, low: int, high: int, language: str) -> bool:
    """Whether `text`, once closed, has `low` to `high` units and says something.

    A single Chinese character (high 1) has no room for more than its mark.
    """
    text = closed(text, language)
    says = any(map(str.isalnum, text)) or (language == "zh" and high == 1)
    return low <= count_units(text, language) <= high and says


def far_enough(text: str, high: int, language: str) -> bool:
    """Whether a line that is too long is settled up to `high` units: a mark stands behind, or enough text."""
    text = text.strip().rstrip("\ufffd")
    beyond = text.split()[high:] if language == "en" else text[high:]
    parts = beyond if isinstance(beyond, list) else [beyond]
    return len(beyond) >= SETTLED[language] or any(map(_BREAK[language].search, parts))


def cuts(texts: Sequence[str], language: str, low: int, high: int) -> list[Cut]:
    """The places between tokens where the line may end, scores not known yet.

    texts[t]: the text of the first t ids, the last one that of all. Places behind a word that leaves the
    sentence hanging only count where there are no others.
    """
    whole, words = _segmented(texts[-1], language)
    found: dict[str, tuple[bool, Cut]] = {}
    for tokens, text in enumerate(texts):
        at = len(text.rstrip())
        if not whole.startswith(text):  # among others, one that ends within a character
            continue
        place = _place(whole, at, words, language, low, high)
        if place is not None:
            closed_text, natural, poor = place
            if closed_text not in found or (natural and not found[closed_text][1].natural):
                found[closed_text] = poor, Cut(tokens, closed_text, -math.inf, natural)
    return [cut for poor, cut in found.values() if not poor] or [cut for _, cut in found.values()]


def best_cut(
    texts: Sequence[str], language: str, low: int, high: int, end: Sequence[float], close: Sequence[float]
) -> Cut | None:
    """The best place for the line to end, see `cuts`; None where no text in range can be closed.

    end[t], close[t]: log-likelihood of the line's end and of a closing mark after t ids; a last one may be
    missing. Of equal places the latest is taken. Where no place between two tokens will do, one within a
    token is taken: a sentence's end, else a clause's, else a word's, the last of its kind; its score is -inf.
    """

    def scored(cut: Cut) -> Cut:
        scores = end if cut.natural else close
        return replace(cut, score=scores[cut.tokens] if cut.tokens < len(scores) else -math.inf)

    found = [scored(cut) for cut in cuts(texts, language, low, high)]
    if found:
        return max(found, key=lambda cut: (cut.score + NATURAL * cut.natural, cut.tokens))
    whole, words = _segmented(texts[-1], language)
    inside = []
    for at in sorted(words):
        place = _place(whole, at, words, language, low, high)
        if place is not None:
            text, natural, poor = place
            tokens = next(t for t, one in enumerate(texts) if one.startswith(whole[:at]))
            clause = whole[at : at + 1] in tuple(WEAK_MARKS[language])
            inside.append(((not poor, natural, clause, at), Cut(tokens, text, -math.inf, natural)))
    return max(inside, key=lambda pair: pair[0])[1] if inside else None


def _place(
    whole: str, at: int, words: dict[int, str], language: str, low: int, high: int
) -> tuple[str, bool, bool] | None:
    """Closed text, natural, poor (leaves something hanging) of an end at `at`; None where it may not be."""
    text = whole[:at]
    body = _body(text, language)
    if len(body) not in words or not may_end(text, low, high, language):
        return None
    if _open(body, PAIRS[language]):
        return None
    natural = ends_closed(text, language)
    following = whole[at:].lstrip()
    last = words[len(body)].lower().replace("’", "'")
    poor = whole[at : at + 1] in tuple(CLOSING_MARKS[language] + CLOSERS) or last in _DANGLING[language]
    if natural:
        poor = poor or (language == "en" and following[:1].islower())
    else:
        poor = poor or body[-1] in "+/&=×@#$¥￥" or (body[-1].isdigit() and following[:1].isalpha())
    return closed(text, language), natural, poor


def _body(text: str, language: str) -> str:
    """`text` without weak marks and blanks at its end."""
    return re.sub(rf"[\s{re.escape(WEAK_MARKS[language])}]+$", "", text)


def _open(text: str, pairs: str) -> bool:
    """Whether a quote or bracket is still open at the end of `text`."""
    for left, right in zip(pairs[::2], pairs[1::2], strict=True):
        if text.rfind(left) > text.rfind(right) or text.count(left) > text.count(right):
            return True
    return text.count('"') % 2 == 1


def _segmented(written: str, language: str) -> tuple[str, dict[int, str]]:
    """What is written up to its first unfinished character, and its words by the position of their end.

    A position is left out where letters or digits go on behind it.
    """
    whole, unfinished, _ = written.partition("\ufffd")
    runs = {at for run in RUNS[language].finditer(whole) for at in range(run.start() + 1, run.end())}
    if language == "en":
        ends = [match.end() for match in re.finditer(rf"{RUNS['en'].pattern}|\S", whole)]
        ends = [at for at in ends if not whole[at : at + 1].isalnum()]
    else:
        ends = []
        for word in _jieba().cut(whole):
            ends.append((ends[-1] if ends else 0) + len(word))
    kept = [at for at in ends if at not in runs and not (unfinished and at == len(whole))]
    if language == "en":
        return whole, {at: whole[:at].split()[-1] for at in kept}
    return whole, {at: whole[start:at].strip() for start, at in zip([0, *kept], kept, strict=False)}


@cache
def _jieba() -> Any:
    import jieba  # loading its dictionary takes a second

    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.initialize()
    return cutter
