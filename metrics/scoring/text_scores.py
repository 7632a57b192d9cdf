"""Scores that need texts and labels only: what each metric takes of the entries, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from metrics import fit, ngram
from metrics.base import Measured, Score, Skips, make_score
from metrics.meteor import MeteorProcess, meteor
from metrics.ngram import Tokenize
from metrics.repetition import join_single_characters, repetition, story_repetition
from metrics.scoring.context import Context, fields_needed
from metrics.scoring.corrections import CORRECTED, Rules
from videonarrator.length import REFERENCE_MARGIN

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
UNIT = {"zh": "characters", "en": "words"}


class Captions(NamedTuple):
    """What the n-gram metrics compare; texts as they are tokenised. cut: without their first tokens."""

    keys: tuple[str, ...]
    narrations: tuple[str, ...]
    references: tuple[str, ...]
    cut: bool
    skips: Skips


def captions(context: Context, rules: Rules) -> Captions:
    """The pairs of narration and reference that BLEU, METEOR and CIDEr take."""
    entries, skips = context.select(rules, "narration", "reference")
    tokenizer = context.resources.tokenizer
    cut = rules.first_token_cut and not tokenizer.adds_bos
    given = [(str(entry.narration), str(entry.reference)) for entry in entries]
    stop = ngram.with_final_stop if rules.final_stop else str
    pairs = [(stop(narration), stop(reference)) for narration, reference in given]
    tokenizer.prepare(text for pair in pairs for text in pair)
    rows = []
    for entry, texts, pair in zip(entries, given, pairs, strict=True):
        short = [len(text) < ngram.SHORTEST_UPSTREAM for text in texts]
        if rules.short_texts_left_out and any(short):
            which = "narration" if short[0] else "reference"
            skips.append((entry.key, f"{which}_under_{ngram.SHORTEST_UPSTREAM}_characters"))
            continue
        if tokenizer.encode(pair[1])[cut:]:
            rows.append((entry.key, *pair))
        else:
            skips.append((entry.key, "reference_without_tokens"))
    keys, narrations, references = zip(*rows, strict=True) if rows else ((), (), ())
    return Captions(keys, narrations, references, cut, skips)


def _encoder(context: Context, taken: Captions) -> Tokenize:
    """Text -> the tokens that are compared."""
    encode = context.resources.tokenizer.encode
    return (lambda text: encode(text)[1:]) if taken.cut else encode


def _settings(context: Context, library: str) -> dict[str, str]:
    return {
        "key": context.settings.key,
        "tokenizer": context.resources.tokenizer.name,
        "library": library,
    }


def bleu_scores(context: Context, rules: Rules) -> list[Score]:
    taken = captions(context, rules)
    encode = _encoder(context, taken)
    results: dict[str, Measured] = {}
    if taken.keys:
        results = context.once(
            ("bleu", taken[:4]), lambda: ngram.bleu(taken.narrations, taken.references, encode)
        )
    settings = _settings(context, f"pycocoevalcap-{version('pycocoevalcap')}")
    return [
        make_score(context.sign(rules, name, **settings), taken.keys, results.get(name), taken.skips)
        for name in BLEU
    ]


def cider_scores(context: Context, rules: Rules) -> list[Score]:
    taken = captions(context, rules)
    encode = _encoder(context, taken)
    keys, skips, measured = taken.keys, taken.skips, None
    if len(keys) == 1:  # with one reference every n-gram has weight 0
        skips, keys = [*skips, (keys[0], "cider_needs_two_clips")], ()
    elif keys:
        measured = context.once(
            ("cider", taken[:4]), lambda: ngram.cider(taken.narrations, taken.references, encode)
        )
    settings = _settings(context, f"pycocoevalcap-{version('pycocoevalcap')}")
    return [make_score(context.sign(rules, "cider", **settings, sigma="6"), keys, measured, skips)]


def meteor_scores(context: Context, rules: Rules, process: MeteorProcess) -> list[Score]:
    taken = captions(context, rules)
    encode, measured = _encoder(context, taken), None
    if taken.keys:
        measured = context.once(
            ("meteor", taken[:4]),
            lambda: meteor(taken.narrations, taken.references, encode, process),
        )
    settings = _settings(context, f"METEOR 1.5 -l en -norm, pycocoevalcap-{version('pycocoevalcap')}")
    return [make_score(context.sign(rules, "meteor", **settings), taken.keys, measured, taken.skips)]


def repetition_scores(context: Context, rules: Rules) -> list[Score]:
    stories, videos, skips = context.stories(rules, *fields_needed(rules))
    segmenter = context.resources.knowledge_words
    join = list if context.settings.language == "en" else join_single_characters
    texts = {video: [str(entry.narration) for entry in story] for video, story in stories.items()}
    segmenter.prepare(text for story in texts.values() for text in story)
    scored = {
        video
        for video, story in texts.items()
        if story_repetition([join(segmenter.words(text)) for text in story]) is not None
    }
    skips += [(video, "story_without_two_narrations") for video in texts if video not in scored]
    videos = [video for video in videos if video in scored]
    measured = repetition([texts[video] for video in videos], segmenter.words, join) if videos else None
    signature = context.sign(
        rules,
        "repetition",
        key=context.settings.key,
        segmenter=segmenter.name,
        units="words" if context.settings.language == "en" else "words, single characters joined",
    )
    return [make_score(signature, videos, measured, skips, "story")]


def length_scores(context: Context, rules: Rules) -> list[Score]:
    """The published code has no such metric, and no rule concerns it."""
    entries, skips = context.select(CORRECTED, "narration", "reference")
    language, key = context.settings.language, context.settings.key
    keys = [entry.key for entry in entries]
    texts = [str(entry.narration) for entry in entries], [str(entry.reference) for entry in entries]
    unit = UNIT[language]
    margin = f"reference -/+{REFERENCE_MARGIN[language]} {unit}"
    inside = context.sign(rules, "length_in_range", key=key, range=margin)
    error = context.sign(rules, "length_mae", key=key, unit=unit)
    return [
        make_score(inside, keys, fit.length_in_range(*texts, language) if keys else None, skips),
        make_score(error, keys, fit.length_mae(*texts, language) if keys else None, skips),
    ]


def label_scores(context: Context, rules: Rules) -> list[Score]:
    """As with lengths, no published rule concerns it."""
    entries, skips = context.select(CORRECTED, "label", "generated_label")
    signature = context.sign(rules, "label_accuracy", match="sets of labels, variants resolved")
    generated, references = _labels([e.generated_label for e in entries]), _labels([e.label for e in entries])
    measured = fit.label_accuracy(generated, references) if entries else None
    return [make_score(signature, [entry.key for entry in entries], measured, skips)]


def _labels(labels: Sequence[str | None]) -> list[str]:
    return [str(label) for label in labels]
