"""BLEU-1..4 and CIDEr over tokens, one reference each, through pycocoevalcap (paper, section 5.2).

The published numbers are taken on token ids of the backbone's tokenizer; any tokenizer of
`metrics.words.segment` serves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider

from metrics.base import Measured, check_pairs
from metrics.words.segment import char_tokenizer

Tokenize = Callable[[str], Sequence[Hashable]]

CHARS = char_tokenizer().encode

SHORTEST_UPSTREAM = 4
"""The published code leaves out texts with fewer characters (either side)."""


def with_final_stop(text: str) -> str:
    """A text as the published code scores it: a final 。 added where it lacks one, then 。。 made 。 once."""
    return (text if text.endswith("。") else text + "。").replace("。。", "。")


def upstream_text(text: str) -> str | None:
    """A text as the published code tokenises it, None where it is too short."""
    return None if len(text) < SHORTEST_UPSTREAM else with_final_stop(text)


def bleu(
    narrations: Sequence[str], references: Sequence[str], tokenize: Tokenize = CHARS
) -> dict[str, Measured]:
    """Corpus BLEU-1..4 (0..1) of narrations against one reference each, as "bleu_1".."bleu_4".

    Brevity penalty as in pycocoevalcap (closest reference length). An empty narration scores 0. Raises
    `ValueError` where the lists differ in length or are empty.
    """
    results, ground = _coco(narrations, references, tokenize)
    scorer = BleuScorer(n=4)
    for i, (narration,) in results.items():
        scorer += (narration, ground[i])
    values, per_item = scorer.compute_score(option="closest", verbose=0)
    rows = [[*item["correct"], *item["guess"], item["testlen"], *item["reflen"]] for item in scorer.ctest]
    statistics = np.array(rows, dtype=np.float64)
    return {
        f"bleu_{n}": Measured(
            float(value),
            [float(score) for score in scores],
            statistics=statistics,
            aggregate=partial(corpus_bleu, n=n),
        )
        for n, (value, scores) in enumerate(zip(values, per_item, strict=True), 1)
    }


def corpus_bleu(sums: np.ndarray, n: int) -> np.ndarray:
    """BLEU-n [...] by pycocoevalcap's formula from sums [..., 10]; NaN where neither side has a token.

    The columns: clipped matches for n = 1..4, n-grams of the narration for n = 1..4, tokens of the narration,
    tokens of the reference.
    """
    tiny, small = 1e-15, 1e-9  # pycocoevalcap's
    correct, guessed = sums[..., :n] + tiny, sums[..., 4 : 4 + n] + small
    ratio = (sums[..., 8] + tiny) / (sums[..., 9] + small)
    bleu = (correct / guessed).prod(-1) ** (1 / n) * np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.where(sums[..., 8] + sums[..., 9] > 0, bleu, np.nan)


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
