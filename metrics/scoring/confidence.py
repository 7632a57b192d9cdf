"""Confidence intervals and paired comparison by the bootstrap over videos.

The clips of a video are not independent, so videos are drawn, not clips. A metric takes part by its
statistics [videos, statistics], what each video adds to the sums that its `aggregate` (see `metrics.base`)
makes the value of: a thousand resampled values cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.base import Aggregate


@dataclass(frozen=True)
class Comparison:
    """Value of a minus value of b, its two-sided p-value (0..1), and the 95 % interval of the difference."""

    difference: float
    p_value: float
    ci95: tuple[float, float]


def by_video(statistics: np.ndarray, videos: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Sums over each video's rows: statistics [items, k], each item's video -> [len(order), k].

    A video of `order` without items has zeros. Raises `ValueError` where a video is not in `order`.
    """
    row = {video: i for i, video in enumerate(order)}
    unknown = [video for video in videos if video not in row]
    if unknown:
        raise ValueError(f"{len(unknown)} items are of no video in the order, the first of {unknown[0]!r}")
    sums = np.zeros((len(order), statistics.shape[1]))
    np.add.at(sums, [row[video] for video in videos], statistics)
    return sums


def resample_counts(n_videos: int, resamples: int, seed: int) -> np.ndarray:
    """How often each video is drawn (with replacement, as many as there are): [resamples, n_videos] int64."""
    return np.random.default_rng(seed).multinomial(n_videos, np.full(n_videos, 1 / n_videos), size=resamples)


def interval(
    statistics: np.ndarray, aggregate: Aggregate, counts: np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a metric: statistics [videos, k], counts [resamples, videos].

    Resamples in which nothing is summed (NaN) are left out; `ValueError` where no other is left.
    Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    return _percentiles(aggregate(counts @ statistics), level)


def paired_test(
    statistics_a: np.ndarray,
    statistics_b: np.ndarray,
    aggregate_a: Aggregate,
    aggregate_b: Aggregate,
    counts: np.ndarray,
) -> Comparison:
    """Compare two outputs over the same videos: statistics [videos, k], the same video in the same row.

    Both are resampled alike (Koehn, 2004, "Statistical Significance Tests for Machine Translation
    Evaluation"). p = 2 (1 + smaller of the numbers of differences <= 0 and >= 0) / (1 + resamples), at most
    1: the level at which the percentile interval of the difference just reaches 0 (Efron and Tibshirani,
    1993, section 15.4), so it agrees with ci95; the ones keep it from ever being 0 (Davison and Hinkley,
    1997, "Bootstrap Methods and their Application", section 4.2). Equal statistics give exactly 1. Resamples
    where either side is NaN are left out; `ValueError` where none is left or the videos differ in number.
    """
    if len(statistics_a) != len(statistics_b):
        raise ValueError(f"{len(statistics_a)} videos against {len(statistics_b)}: need the same videos")
    differences = aggregate_a(counts @ statistics_a) - aggregate_b(counts @ statistics_b)
    ci95 = _percentiles(differences, 0.95)
    known = differences[~np.isnan(differences)]
    smaller = min(int((known <= 0).sum()), int((known >= 0).sum()))
    difference = aggregate_a(statistics_a.sum(0)) - aggregate_b(statistics_b.sum(0))
    return Comparison(float(difference), min(1.0, 2 * (1 + smaller) / (1 + len(known))), ci95)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        raise ValueError("no resample has a value: nothing to make an interval of")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
