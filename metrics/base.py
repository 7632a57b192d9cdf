"""What every metric shares: the shape of a score, and the signature without which no number travels.

An entry that a metric cannot use is never dropped silently: it is counted under a reason. A number never
travels without its signature, made from every setting that can move it (the idea is sacreBLEU's).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HIGHER_IS_BETTER = {
    "bleu_1": True,
    "bleu_2": True,
    "bleu_3": True,
    "bleu_4": True,
    "meteor": True,
    "cider": True,
    "emscore": True,
    "emscore_ref": True,
    "info_sim": True,
    "info_diverse": True,
    "repetition": False,
    "length_in_range": True,
    "length_mae": False,
    "label_accuracy": True,
}
"""Every metric's name, in the order of the report, and whether a higher value is the better one."""

Skips = list[tuple[str, str]]
"""(key, reason) of what was left out; a list, because a key that stands twice in a file is left out once."""


Aggregate = Callable[[np.ndarray], np.ndarray]
"""From summed statistics [..., statistics] to values [...]."""


def ratio(sums: np.ndarray) -> np.ndarray:
    """The mean from (sum of values, number of values), [..., 2] -> [...]; NaN where nothing was summed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Measured:
    """What a metric function returns: the value, the value of each item (same order as the input), and parts.

    An item that takes no part in the value (a story that is too short for the metric) is None. statistics
    [items, statistics], float64: what each item adds to the sums that `aggregate` makes the value of (so that
    a resampled value costs one sum); None: the value is the mean of the items that are not None.
    """

    value: float
    per_item: list[float | None]
    components: dict[str, float] = field(default_factory=dict)
    statistics: np.ndarray | None = None
    aggregate: Aggregate = ratio


@dataclass(frozen=True)
class Signature:
    """Name, version and settings of a metric as one line: `name|version:1|setting:value|...`.

    Two numbers may be compared only where their signatures are equal. `|` inside a value is written as %7C.
    """

    name: str
    settings: dict[str, str]
    version: int = 1

    def __str__(self) -> str:
        parts = [f"{k}:{v.replace('%', '%25').replace('|', '%7C')}" for k, v in self.settings.items()]
        return "|".join([self.name, f"version:{self.version}", *parts])


@dataclass(frozen=True)
class Score:
    """One metric's result. `value` is None where nothing could be scored; `unit` says what `n_scored` counts.

    rows: the key of each scored item, a clip (key of output.json) or story (video id); samples: key -> value.
    statistics [rows, statistics] and aggregate: as in `Measured`. published: the value under the published
    rules, and moved: rule -> how far leaving it out moved the value; both only where the value is the
    corrected one. ci95 is None until it is computed.
    """

    name: str
    value: float | None
    signature: Signature
    rows: list[str]
    samples: dict[str, float]
    skips: Skips
    unit: str = "clip"
    components: dict[str, float] = field(default_factory=dict)
    statistics: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    aggregate: Aggregate = ratio
    published: float | None = None
    moved: dict[str, float | None] = field(default_factory=dict)
    ci95: tuple[float, float] | None = None

    @property
    def videos(self) -> list[str]:
        """The video of each row."""
        return [key.rpartition("_")[0] if self.unit == "clip" else key for key in self.rows]

    def as_json(self) -> dict[str, Any]:
        """The metric's object in results.json."""
        return {
            "value": self.value,
            "unit": self.unit,
            "n_scored": len(self.samples),
            "n_skipped": dict(sorted(Counter(reason for _, reason in self.skips).items())),
            "signature": str(self.signature),
            "ci95": self.ci95,
            "higher_is_better": HIGHER_IS_BETTER[self.name],
            "components": self.components,
            "published": self.published,
            "moved": self.moved,
        }


def make_score(
    signature: Signature, keys: Sequence[str], measured: Measured | None, skips: Skips, unit: str = "clip"
) -> Score:
    """The score of the items `keys`; measured None: nothing could be scored."""
    if measured is None:
        return Score(signature.name, None, signature, [], {}, skips, unit)
    pairs = list(zip(keys, measured.per_item, strict=True))
    scored = [(key, value) for key, value in pairs if value is not None]
    statistics, rows = measured.statistics, list(keys)
    if statistics is None:
        rows = [key for key, _ in scored]
        statistics = np.array([[value, 1.0] for _, value in scored]).reshape(-1, 2)
    return Score(
        signature.name,
        measured.value,
        signature,
        rows,
        dict(scored),
        skips,
        unit,
        measured.components,
        statistics,
        measured.aggregate,
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean of at least one value."""
    values = list(values)
    return sum(values) / len(values)


def check_pairs(narrations: Sequence[object], references: Sequence[object]) -> None:
    """Raise `ValueError` unless both lists are equally long and not empty."""
    if len(narrations) != len(references) or not narrations:
        raise ValueError(
            f"{len(narrations)} narrations and {len(references)} references: need as many of both, and some"
        )
