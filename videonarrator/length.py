"""How long a narration is and should be: counting, and the range the prompt asks for.

Chinese is counted in characters, punctuation included; English in words between blanks. The range is the
reference's own length -/+ a margin, or what a speaking rate lets fit into the clip.
"""

from __future__ import annotations

import math

REFERENCE_MARGIN = {"zh": 3, "en": 5}
"""Half the width of the range around a reference narration (characters, words)."""

RANGE_WIDTH = {"zh": 6, "en": 10}
"""Width of the range that is asked for a new clip (characters, words)."""

DEFAULT_RATE = {"zh": 6.0, "en": 2.5}
"""Characters (punctuation included) or words a second where no speaking rate is given.

Chinese: a little under the data set's median of 6.3, so that most speakers can keep up; English: 150 words a
minute. `videonarrator.speech.default_rate` speaks at this rate, too.
"""


def count_units(text: str, language: str = "zh") -> int:
    """Length of a narration: characters (zh) or words between blanks (en)."""
    return len(text.split()) if language == "en" else len(text)


def range_for_reference(text: str, language: str = "zh") -> tuple[int, int]:
    """The length range (low, high) asked for where the reference narration is `text`; low is at least 1."""
    length, margin = count_units(text, language), REFERENCE_MARGIN[language]
    return max(1, length - margin), length + margin


def range_for_duration(seconds: float, rate: float | None = None, language: str = "zh") -> tuple[int, int]:
    """The length range (low, high) for a clip of `seconds` at `rate` units a second (default: DEFAULT_RATE).

    high = floor(rate * seconds), so that a text in range never overruns its clip; both are at least 1.
    """
    rate = DEFAULT_RATE[language] if rate is None else rate
    # 0.3 s at 10 a second must be 3, not 2: the product is rounded past the noise of binary fractions first
    high = max(1, math.floor(round(rate * seconds, 6)))
    return max(1, high - RANGE_WIDTH[language]), high


def length_gap(length: int, low: int, high: int) -> int:
    """Units by which `length` lies outside `low`-`high`; 0 inside."""
    return max(low - length, 0, length - high)
