"""Grounding on the sample world: does a narration name what can be seen, and only there?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from data_process.sample_world.scenes import ATTRIBUTES


def names_rightly(text: str, attribute: str, value: str) -> bool:
    """Whether `text` names `value` of the attribute and no other value of it."""
    named = {word for word in ATTRIBUTES[attribute] if re.search(rf"(?<!\d){re.escape(word)}(?!\d)", text)}
    return named == {value}


def grounding(
    narrations: Mapping[str, Mapping[int, str]], named: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, dict[str, float]]:
    """Share of narrations that name the right value where the reference does, over all and by attribute.

    narrations: video id -> clip index -> text. named: video id -> for each clip, attribute -> value that the
    reference names for the first time in its video. A clip without a narration counts as wrong.
    Returns attribute (and "all") -> `{"right": share, "of": number}`.
    """
    right: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for video_id, texts in narrations.items():
        for index, wanted in enumerate(named[video_id]):
            for attribute, value in wanted.items():
                hit = names_rightly(texts.get(index, ""), attribute, value)
                for name in ("all", attribute):
                    total[name] += 1
                    right[name] += hit
    return {name: {"right": right[name] / total[name], "of": total[name]} for name in sorted(total)}
