"""BLEU-1..4 and CIDEr over tokens, one reference each, through pycocoevalcap (paper, section 5.2).

The published numbers are taken on token ids of the backbone's tokenizer; any tokenizer of `metrics.segment`
serves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from metrics.base import Measured, check_pairs
from metrics.segment import char_tokenizer

Tokenize = Callable[[str], Sequence[Hashable]]

CHARS = char_tokenizer().encode

SHORTEST_UPSTREAM = 4
"""The published code leaves out texts with fewer characters (either side)."""


def upstream_text(text: str) -> str | None:
    """A text as the published code tokenises it, None where it is too short.

    A final 。 is added where there is none, then 。。 becomes 。 in one pass.
    """
    if len(text) < SHORTEST_UPSTREAM:
        return None
    return (text if text.endswith("。") else text + "。").replace("。。", "。")


def bleu(
    narrations: Sequence[str], references: Sequence[str], tokenize: Tokenize = CHARS
) -> dict[str, Measured]:
    """Corpus BLEU-1..4 (0..1) of narrations against one reference each, as "bleu_1".."bleu_4".

    Brevity penalty as in pycocoevalcap (closest reference length). An empty narration scores 0. Raises
    `ValueError` where the lists differ in length or are empty.
    """
    results, ground = _coco(narrations, references, tokenize)
    values, per_item = Bleu(4).compute_score(ground, results, verbose=0)
    return {
        f"bleu_{n}": Measured(float(value), [float(score) for score in scores])
        for n, (value, scores) in enumerate(zip(values, per_item, strict=True), 1)
    }


def cider(narrations: Sequence[str], references: Sequence[str], tokenize: Tokenize = CHARS) -> Measured:
    """CIDEr-D (0..10): n = 1..4, sigma 6, document frequencies from these references; mean over narrations.

    Raises `ValueError` where the lists differ in length, or hold fewer than two pairs (every weight would be
    0), or no reference has a token.
    """
    if len(references) < 2:
        raise ValueError(
            "CIDEr weighs n-grams by how few references have them: it needs at least two references"
        )
    results, ground = _coco(narrations, references, tokenize)
    if not any(text for (text,) in ground.values()):
        raise ValueError("CIDEr: no reference has a token")
    value, per_item = Cider().compute_score(ground, results)
    return Measured(float(value), [float(score) for score in per_item])


def _coco(
    narrations: Sequence[str], references: Sequence[str], tokenize: Tokenize
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Both sides in pycocoevalcap's form: number -> [tokens joined by blanks].

    Tokens are numbered, so that a token may hold white space of any kind; equal tokens get equal numbers,
    which is all that BLEU and CIDEr look at.
    """
    check_pairs(narrations, references)
    numbers: dict[Hashable, int] = {}

    def side(texts: Sequence[str]) -> dict[int, list[str]]:
        rows = ((str(numbers.setdefault(token, len(numbers))) for token in tokenize(text)) for text in texts)
        return {i: [" ".join(row)] for i, row in enumerate(rows)}

    return side(narrations), side(references)
