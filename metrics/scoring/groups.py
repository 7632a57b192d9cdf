"""Running the metrics on one output, METEOR beside the others, and the bootstrap on their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from metrics.base import Score
from metrics.meteor import MeteorProcess
from metrics.scoring import confidence as bootstrap
from metrics.scoring.context import Context
from metrics.scoring.corrections import CORRECTED, PUBLISHED, Rules, concerning
from metrics.scoring.encoded_scores import EMSCORES, emscore_scores, info_diverse_scores, info_sim_scores
from metrics.scoring.text_scores import (
    BLEU,
    bleu_scores,
    cider_scores,
    label_scores,
    length_scores,
    meteor_scores,
    repetition_scores,
)
from videonarrator.schema import NarratorError

SEED = 0
"""Of the bootstrap: the same inputs give the same intervals."""

Progress = Callable[[str], None]

_GROUPS: tuple[tuple[tuple[str, ...], Callable[[Context, Rules], list[Score]]], ...] = (
    (BLEU, bleu_scores),
    (("cider",), cider_scores),
    (EMSCORES, emscore_scores),
    (("info_sim",), info_sim_scores),
    (("info_diverse",), info_diverse_scores),
    (("repetition",), repetition_scores),
    (("length_in_range", "length_mae"), length_scores),
    (("label_accuracy",), label_scores),
)

Outcome = tuple[dict[str, Score], dict[str, str]]
"""Metric -> score, and metric -> why it failed."""


@contextmanager
def meteor_beside(names: list[str], progress: Progress) -> Iterator[MeteorProcess | None]:
    """METEOR's process where it is wanted, to be started first: it reads its tables for ten seconds."""
    if "meteor" not in names:
        yield None
        return
    progress("meteor: starting, beside the others")
    with MeteorProcess() as process:
        yield process


def score_all(
    context: Context,
    names: list[str],
    rule_sets: list[Rules],
    meteor: MeteorProcess | None,
    progress: Progress,
) -> Outcome:
    """All metrics under the first of the rule sets; METEOR, a program of its own, runs beside the others."""
    scores: dict[str, Score] = {}
    failed: dict[str, str] = {}

    def gather(outcome: Outcome) -> None:
        scores.update(outcome[0])
        failed.update(outcome[1])

    def run_meteor(process: MeteorProcess) -> Outcome:
        outcome = _group(["meteor"], lambda c, r: meteor_scores(c, r, process), context, rule_sets)
        progress("meteor done")
        return outcome

    with ThreadPoolExecutor(1) as beside:
        pending = None if meteor is None else beside.submit(run_meteor, meteor)
        try:
            for group, compute in _GROUPS:
                wanted = [name for name in group if name in names]
                if wanted:
                    progress(f"{', '.join(wanted)}: {len(context.listed[0].entries)} entries")
                    gather(_group(wanted, compute, context, rule_sets))
            if pending is not None:
                gather(pending.result())
        except BaseException:
            if meteor is not None:  # else leaving the block would wait for it
                meteor.end()
            raise
    return {name: scores[name] for name in names if name in scores}, failed


def _group(
    names: list[str],
    compute: Callable[[Context, Rules], list[Score]],
    context: Context,
    rule_sets: list[Rules],
) -> Outcome:
    """The scores of metrics that are computed together, under the first of the rule sets.

    Where that is the corrected one, each score has the published value, and how far each rule moves it.
    """
    try:
        first = rule_sets[0]
        results = {score.name: score for score in compute(context, first)}
        scores = {name: results[name] for name in names}
        rules = {rule: None for name in names for rule in concerning(name)}
        if first == CORRECTED and len(rule_sets) > 1 and rules:
            published = {score.name: score.value for score in compute(context, PUBLISHED)}
            alone = {
                rule: {score.name: score.value for score in compute(context, Rules(**{rule: True}))}
                for rule in rules
            }
            for name, score in scores.items():
                moved = {rule: _moved(score.value, alone[rule][name]) for rule in concerning(name)}
                scores[name] = replace(score, published=published[name], moved=moved)
    except Exception as error:  # noqa: BLE001 - one metric's failure must not cost the others; it is reported
        reason = str(error) if isinstance(error, NarratorError) else f"{type(error).__name__}: {error}"
        return {}, dict.fromkeys(names, reason)
    return scores, {}


def _moved(corrected: float | None, published: float | None) -> float | None:
    return None if corrected is None or published is None else corrected - published


def with_interval(score: Score, resamples: int) -> Score:
    if score.value is None:
        return score
    videos = list(dict.fromkeys(score.videos))
    counts = bootstrap.resample_counts(len(videos), resamples, SEED)
    return replace(score, ci95=bootstrap.interval(_sums(score, videos), score.aggregate, counts))


def _sums(score: Score, videos: list[str]) -> np.ndarray:
    """A score's statistics summed by video, [videos, statistics]; rows of other videos play no part."""
    wanted, own = set(videos), score.videos
    rows = [row for row, video in enumerate(own) if video in wanted]
    return bootstrap.by_video(score.statistics[rows], [own[row] for row in rows], videos)


def compare_scores(score: Score, other: Score, resamples: int) -> dict[str, Any]:
    """The paired test over the videos that both have, as results.json holds it."""
    there = set(other.videos)
    videos = [video for video in dict.fromkeys(score.videos) if video in there]
    if not videos:
        return {"other": other.value, "videos": 0, "difference": None, "p_value": None, "ci95": None}
    counts = bootstrap.resample_counts(len(videos), resamples, SEED)
    one, two = (_sums(each, videos) for each in (score, other))
    test = bootstrap.paired_test(one, two, score.aggregate, other.aggregate, counts)
    return {
        "other": other.value,
        "videos": len(videos),
        "difference": test.difference,
        "p_value": test.p_value,
        "ci95": test.ci95,
    }
