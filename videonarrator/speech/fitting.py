"""A speaking rate from texts and the seconds they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from videonarrator.length import count_units
from videonarrator.schema import NarratorError
from videonarrator.speech.rate import COEFFICIENTS, SpeakingRate, count_row, default_rate

PARTS = 5
"""Parts of the cross-validation; each is a run of neighbours, so that a video's clips stay together."""

HELD = 3
"""Each coefficient is held to the default's proportions as by so many typical pairs in which it occurs once:
what the texts tell little of (few pairs, no Latin word among them) keeps these."""

_ROUNDS = 50
_NEAR = 0.01  # relative errors below this weigh alike
_SHORTEST = 0.01  # seconds


@dataclass(frozen=True)
class Calibration:
    """A fitted rate, and its errors on pairs left out of the fit (None where there were fewer than two).

    median_error, median_seconds: of |predicted - true|, the first divided by true. within_10_percent: a
    share.
    """

    rate: SpeakingRate
    pairs: int
    median_error: float | None = None
    median_seconds: float | None = None
    within_10_percent: float | None = None


def calibrate(
    texts: Sequence[str], seconds: Sequence[float], language: str, *, voice: str = "", source: str = ""
) -> Calibration:
    """Fit a rate on all pairs, and judge it by cross-validation. Raises as `fit_rate` does."""
    rate = replace(fit_rate(texts, seconds, language), voice=voice, source=source)
    if len(texts) < 2:
        return Calibration(rate, len(texts))
    rows, true = _rows(texts, language), np.asarray(seconds, float)
    predicted = np.empty(len(texts))
    for part in np.array_split(np.arange(len(texts)), min(PARTS, len(texts))):
        rest = np.setdiff1d(np.arange(len(texts)), part)
        predicted[part] = _predict(rows[part], _fit(rows[rest], true[rest], language))
    wrong = np.abs(predicted - true)
    return Calibration(
        rate,
        len(texts),
        float(np.median(wrong / true)),
        float(np.median(wrong)),
        float(np.mean(wrong / true <= 0.10)),
    )


def fit_rate(texts: Sequence[str], seconds: Sequence[float], language: str) -> SpeakingRate:
    """The rate that minimises the sum of |seconds - predicted| / predicted, no coefficient below 0.

    An absolute error, so that wrong pairs pull little; relative to what is predicted, so that short and long
    texts weigh alike and half of the pairs lie on either side. Raises `NarratorError` where there is no pair,
    a text has nothing to say, or a duration is not positive.
    """
    if not texts:
        raise NarratorError("no pair of text and duration to fit a speaking rate on")
    rows, true = _rows(texts, language), np.asarray(seconds, float)
    for text, row, duration in zip(texts, rows, true, strict=True):
        if not row.any():
            raise NarratorError(f"{text!r} has nothing to say")
        if not (np.isfinite(duration) and duration > 0):
            raise NarratorError(f"{text!r} takes {duration:g} s: expected a duration greater than 0")
    fitted = _fit(rows, true, language)
    units = np.array([count_units(text, language) for text in texts])
    return replace(
        default_rate(language),
        units_per_second=float(np.median(units / _predict(rows, fitted))),
        **{name: float(value) for name, value in zip(COEFFICIENTS, fitted, strict=True)},
    )


def _rows(texts: Sequence[str], language: str) -> np.ndarray:
    return np.array([count_row(text, language) for text in texts], float)  # [texts, coefficients]


def _fit(rows: np.ndarray, seconds: np.ndarray, language: str) -> np.ndarray:
    """Coefficients by reweighted least squares; the prior is the default at the speed of these pairs."""
    default = np.array(default_rate(language).coefficients)
    prior = default * np.median(seconds / (rows @ default))
    fitted = prior
    for _ in range(_ROUNDS):
        predicted = _predict(rows, fitted)
        error = np.maximum(np.abs(seconds - predicted) / predicted, _NEAR)
        weight = 1 / (predicted**2 * error)  # weight x (seconds - predicted)^2 is what is to be minimised
        held = HELD * np.median(weight)
        gram = (rows * weight[:, None]).T @ rows + held * np.eye(len(prior))
        last, fitted = fitted, _non_negative(gram, rows.T @ (weight * seconds) + held * prior)
        if np.allclose(last, fitted, rtol=1e-6, atol=1e-9):
            break
    return fitted


def _predict(rows: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return np.maximum(rows @ coefficients, _SHORTEST)


def _non_negative(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises x' gram x / 2 - right' x: the best of all choices of what is 0."""
    every = range(len(right))
    best, least = np.zeros(len(right)), 0.0
    for size in reversed(every):
        for kept in combinations(every, size + 1):
            part = np.linalg.solve(gram[np.ix_(kept, kept)], right[list(kept)])
            if (part < 0).any():
                continue
            value = -right[list(kept)] @ part / 2
            if size + 1 == len(right):
                return part
            if value < least:
                least, best = value, np.zeros(len(right))
                best[list(kept)] = part
    return best
