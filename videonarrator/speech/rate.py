"""How fast a voice speaks a language, and how a text fits its clip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

from videonarrator.config import load_config, save_config
from videonarrator.length import DEFAULT_RATE
from videonarrator.schema import NarratorError
from videonarrator.speech.reading import count_spoken

Fit = Literal["comfortable", "tight", "fast", "over"]

FIT_LIMITS: Mapping[Fit, float] = {"comfortable": 0.90, "tight": 1.00, "fast": 1.20}
"""Largest share of the clip that a text of each class takes; above the last it is "over"."""

COEFFICIENTS = ("syllable", "light", "latin", "word", "consonant", "weak_pause", "strong_pause", "constant")
"""The seconds of a `SpeakingRate`, in the order of `SpokenCounts`; the constant is the last."""


@dataclass(frozen=True)
class SpeakingRate:
    """Seconds of a text = sum of coefficient x count (`SpokenCounts`), for one language and voice.

    syllable to strong_pause: seconds that one of each adds; constant: seconds of every text that is spoken.
    units_per_second: characters, punctuation included (zh), or words (en) a second of typical text, for
    length ranges. source: where the numbers come from. Raises `NarratorError` for a number below 0.
    """

    language: Literal["zh", "en"]
    units_per_second: float
    syllable: float
    light: float = 0.0
    latin: float = 0.0
    word: float = 0.0
    consonant: float = 0.0
    weak_pause: float = 0.0
    strong_pause: float = 0.0
    constant: float = 0.0
    voice: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("units_per_second", *COEFFICIENTS):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise NarratorError(f"speaking rate: {name} is {value:g}, expected a number, 0 or greater")
        if self.units_per_second == 0 or not any(self.coefficients[:-1]):
            raise NarratorError(
                "speaking rate: units_per_second and one of "
                + ", ".join(COEFFICIENTS[:-1])
                + " must be greater than 0"
            )

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The seconds, in the order of COEFFICIENTS."""
        return tuple(getattr(self, name) for name in COEFFICIENTS)


def count_row(text: str, language: str) -> tuple[int, ...]:
    """The counts of a text in the order of COEFFICIENTS; all 0 where there is nothing to say."""
    counts = count_spoken(text, language)
    return (0,) * len(COEFFICIENTS) if counts.silent else (*astuple(counts), 1)


def spoken_seconds(text: str, rate: SpeakingRate) -> float:
    """Seconds that `text` takes to say, without silence at its ends; 0 for a text with nothing to say."""
    return sum(
        seconds * count
        for seconds, count in zip(rate.coefficients, count_row(text, rate.language), strict=True)
    )


def fit_of(seconds: float, clip_seconds: float) -> Fit:
    """How speech of `seconds` fits a clip: comfortable (<= 0.90), tight (<= 1.00), fast (<= 1.20), over.

    Raises `NarratorError` where the clip has no duration.
    """
    if not (math.isfinite(clip_seconds) and clip_seconds > 0):
        raise NarratorError(f"a clip of {clip_seconds:g} s: expected a duration greater than 0")
    share = round(seconds / clip_seconds, 9)  # 0.9 of 3 s is a little over 2.7 in binary
    for fit, limit in FIT_LIMITS.items():
        if share <= limit:
            return fit
    return "over"


def scaled(rate: SpeakingRate, units_per_second: float) -> SpeakingRate:
    """The same voice, faster or slower: all its seconds scaled so that it speaks so many units a second."""
    factor = rate.units_per_second / units_per_second
    seconds = {name: getattr(rate, name) * factor for name in COEFFICIENTS}
    return replace(rate, units_per_second=units_per_second, **seconds)


# What the two commands in docs/speech.md ("The defaults") gave, rounded to 0.1 ms.
_MEASURED = {
    "zh": SpeakingRate(
        "zh", 6.3177, syllable=0.1379, light=0.0915, latin=0.1285, weak_pause=0.3073, strong_pause=0.3382,
        constant=0.4901, source="300 annotated advertisements (E-SyncVidStory)",
    ),
    "en": SpeakingRate(
        "en", 3.2819, syllable=0.0173, light=0.0774, word=0.1088, consonant=0.0683, weak_pause=0.1973,
        strong_pause=0.3174, constant=0.0977, source="espeak-ng, voice en-us, slowed to 150 words a minute",
    ),
}  # fmt: skip


def default_rate(language: str) -> SpeakingRate:
    """The rate where none is given: measured proportions at `length.DEFAULT_RATE` units a second."""
    if language not in _MEASURED:
        raise NarratorError(f"no speaking rate for language {language!r}; there are {', '.join(_MEASURED)}")
    return scaled(_MEASURED[language], DEFAULT_RATE[language])


def read_rate(text: str | None, language: str) -> SpeakingRate:
    """The rate the user means: None the default, a number the default at so many units a second, else a file.

    Raises `NarratorError` for a number that is not positive, a file that is not there or no rate, or one of
    another language.
    """
    default = default_rate(language)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        rate = load_rate(text)
        if rate.language != language:
            raise NarratorError(
                f"{text} is a speaking rate of language {rate.language}, the narration is in {language}: "
                f"make one with videonarrator calibrate --language {language}"
            ) from None
        return rate
    if not (math.isfinite(number) and number > 0):
        raise NarratorError(f"--rate is {text}: expected characters (or words) a second, greater than 0")
    return replace(scaled(default, number), source=f"{default.source}, scaled")


def load_rate(path: str | Path) -> SpeakingRate:
    """The rate in a YAML file that `save_rate` or `videonarrator calibrate` wrote."""
    if not Path(path).is_file():
        raise NarratorError(
            f"no speaking rate {path}: give characters (or words) a second, or a YAML file that "
            "videonarrator calibrate wrote"
        )
    try:
        return load_config(SpeakingRate, path)
    except NarratorError as error:
        if str(error).startswith(str(path)):
            raise
        raise NarratorError(f"{path}: {error}") from error


def save_rate(rate: SpeakingRate, path: str | Path) -> None:
    """Write a rate as YAML; `load_rate` reads it back equal."""
    save_config(rate, path)
