"""What each metric is: definition, formula, source and settings, for `python -m metrics explain NAME`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from metrics.base import HIGHER_IS_BETTER
from metrics.scoring.corrections import CORRECTIONS, concerning
from videonarrator.schema import NarratorError


@dataclass(frozen=True)
class Explanation:
    """A metric in words. options: the command's options that can move the number."""

    definition: str
    formula: str
    source: str
    options: tuple[str, ...]
    remark: str = ""


_PAPER = "Synchronized Video Storytelling (ACL 2024), section 5.2"
_CAPTION_OPTIONS = ("--key", "--tokenizer", "--ids", "--annotations", "--upstream")
_WORD_OPTIONS = ("--key", "--segmenter", "--user-dict", "--lang", "--ids", "--annotations", "--upstream")
_FIT_OPTIONS = ("--key", "--lang", "--ids", "--annotations")


def _bleu(n: int) -> Explanation:
    grams = "1-grams" if n == 1 else f"1- to {n}-grams"
    return Explanation(
        f"precision of the narration's {grams} against the reference, over the whole corpus; 0..1",
        f"BP * (p_1 * ... * p_{n})^(1/{n}), p_k = clipped matches / k-grams, BP = min(1, e^(1 - ref/len))",
        f"{_PAPER}; Papineni et al. 2002; pycocoevalcap",
        _CAPTION_OPTIONS,
    )


EXPLANATIONS: dict[str, Explanation] = {
    **{f"bleu_{n}": _bleu(n) for n in range(1, 5)},
    "meteor": Explanation(
        "alignment of the narration's tokens with the reference's, precision, recall and order in one; 0..1",
        "(1 - gamma * (chunks/matches)^beta) * P*R / (alpha*P + (1-alpha)*R), alpha .85, beta .2, gamma .6",
        f"{_PAPER}; Denkowski and Lavie 2014; the METEOR 1.5 program, -l en -norm (needs Java)",
        _CAPTION_OPTIONS,
        "as published, the tokens (ids of the tokenizer's vocabulary) are handed over as if they were "
        "English words: for Chinese, stems, synonyms and paraphrases play no part",
    ),
    "cider": Explanation(
        "CIDEr-D: how much of the reference's telling n-grams the narration has; 0..10",
        "10 * mean over n = 1..4 of the cosine of clipped tf-idf n-gram vectors * e^(-(length gap)^2 / 72)",
        f"{_PAPER}; Vedantam et al. 2015; pycocoevalcap; document frequencies from these references",
        _CAPTION_OPTIONS,
        "intervals keep the document frequencies of all references",
    ),
    "emscore": Explanation(
        "how well the narration's words and the clip's frames match each other, by CLIP; times 100",
        "100 * mean of (F + coarse)/2; coarse = sentence . mean frame; P = sum over words of the best "
        "frame's cosine, R = mean over frames of the best word's, F = 2PR/(P+R)",
        f"{_PAPER}; Shi et al. 2022 (EMScore)",
        ("--clip-model", "--clip-backend", "--frame-features", "--frames", "--segmenter", *_FIT_OPTIONS),
        "the published P is a sum over words, so that the score grows with the narration's length and can "
        "pass 100; the part value_normalized is the same with the mean over words in its place",
    ),
    "emscore_ref": Explanation(
        "EMScore with the reference: the mean of EMScore and of the same between narration and reference",
        "(EMScore(narration, frames) + EMScore(narration, reference)) / 2; the reference's words stand in "
        "place of frames, its sentence (cut to 77 characters) in place of their mean",
        f"{_PAPER}; Shi et al. 2022 (EMScore)",
        ("--clip-model", "--clip-backend", "--frame-features", "--frames", "--segmenter", *_FIT_OPTIONS),
        "see emscore for the sum over words",
    ),
    "info_sim": Explanation(
        "knowledge relevance: how near narrations are to the product's knowledge points; -1..1",
        "mean over narrations of (best cosine of the sentence + mean over words of the best cosine) / 2",
        f"{_PAPER}, knowledge relevance",
        ("--text-model", "--idf", *_WORD_OPTIONS),
        "with the one nearest point a word's idf multiplies and divides the same value: it has no effect "
        "(the published code gives NaN where it is 0)",
    ),
    "info_diverse": Explanation(
        "knowledge diversity: knowledge points covered per second of narrated video",
        "mean over stories of (points whose nearest word has a cosine above 0.9, a word covering one point) "
        "/ seconds of the clips that have a narration",
        f"{_PAPER}, knowledge relevance",
        ("--text-model", "--idf", *_WORD_OPTIONS),
    ),
    "repetition": Explanation(
        "intra-story repetition: how often units stood in earlier narrations of the story; lower is better",
        "mean over stories of (sum over units of the number of earlier narrations that have it) / units",
        f"{_PAPER}, intra-story repetition",
        _WORD_OPTIONS,
        "as published the score can pass 1; the part share counts each unit 0 or 1",
    ),
    "length_in_range": Explanation(
        "share of narrations whose length lies in the range asked for",
        "mean of [low <= length <= high]; range: the reference's length -/+ 3 characters (zh), 5 words (en)",
        "this project; the range is that of the paper's prompt, section 4",
        _FIT_OPTIONS,
    ),
    "length_mae": Explanation(
        "mean absolute difference to the reference's length, in characters (zh) or words (en)",
        "mean of |length - reference length|; part bias: the same with its sign",
        "this project",
        _FIT_OPTIONS,
    ),
    "label_accuracy": Explanation(
        "share of clips whose generated script labels equal the reference's as a set (A+B = B+A); "
        "jaccard: mean overlap; known: share made of the twelve script labels",
        "mean of [set(generated) = set(reference)], spelling variants of the data set resolved",
        "this project; the storyline is the paper's section 3",
        ("--ids", "--annotations"),
    ),
}


def explain(name: str) -> str:
    """A metric's definition, formula, source, settings and corrections, as lines of text.

    Raises `NarratorError` on an unknown name.
    """
    if name not in EXPLANATIONS:
        near = difflib.get_close_matches(name, EXPLANATIONS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise NarratorError(f"unknown metric {name!r}{hint}; there are: {', '.join(EXPLANATIONS)}")
    what = EXPLANATIONS[name]
    lines = [
        name,
        f"  definition: {what.definition}",
        f"  formula:    {what.formula}",
        f"  better:     {'higher' if HIGHER_IS_BETTER[name] else 'lower'}",
        f"  source:     {what.source}",
        f"  settings:   {', '.join(what.options)}",
    ]
    lines += [f"  remark:     {what.remark}"] if what.remark else []
    lines += [f"  corrected:  {CORRECTIONS[rule][1]} ({rule})" for rule in concerning(name)]
    return "\n".join(lines)
