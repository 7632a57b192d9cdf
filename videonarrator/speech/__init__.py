"""The speaking-rate model: how long a text takes to say, in a language, by a voice.

A text is expanded as it is read aloud, reduced to a few counts (syllables, Latin syllables, words, pauses),
and its seconds are a sum of coefficient x count. One model answers wherever a length in time is asked for:
prompts, checks, reports, exports. No torch.
"""

from __future__ import annotations

from videonarrator.speech.rate import (
    FIT_LIMITS,
    SpeakingRate,
    default_rate,
    fit_of,
    load_rate,
    read_rate,
    save_rate,
    scaled,
    spoken_seconds,
)
from videonarrator.speech.reading import SpokenCounts, count_spoken, spoken_text

__all__ = [
    "FIT_LIMITS",
    "SpeakingRate",
    "SpokenCounts",
    "count_spoken",
    "default_rate",
    "fit_of",
    "load_rate",
    "read_rate",
    "save_rate",
    "scaled",
    "spoken_seconds",
    "spoken_text",
]
