"""The storyline: one script label per clip, from twelve that may be joined by "+" (paper, section 3)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from videonarrator.schema import NarratorError

SCRIPT_LABELS = (
    "产品推荐",
    "痛点铺垫",
    "引导购买",
    "外观设计",
    "质地/成分/材质",
    "产品试用",
    "产品功效",
    "质量/特性介绍",
    "鉴定展示",
    "安全认证",
    "生产过程",
    "其他/通用卖点",
)
"""The twelve script labels of E-SyncVidStory."""

LABEL_VARIANTS = {"其他": "其他/通用卖点"}
"""Spellings the released test split also uses -> the label that is meant."""


def label_parts(label: str) -> frozenset[str]:
    """The set of labels in `label`: "A+B" and "B+A" are the same set; variants are resolved."""
    parts = (part.strip() for part in label.split("+"))
    return frozenset(LABEL_VARIANTS.get(part, part) for part in parts if part)


def unknown_parts(label: str, known: Sequence[str] = SCRIPT_LABELS) -> list[str]:
    """Those parts of `label` that are none of the `known`; an empty label is itself unknown."""
    parts = label_parts(label)
    return sorted(parts - set(known)) if parts else [label]


def check_label(label: str, known: Sequence[str] = SCRIPT_LABELS) -> str:
    """`label` unchanged, or a `NarratorError` naming the unknown part and the nearest right one."""
    unknown = unknown_parts(label, known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]}?)" if near else ""
        names = "、".join(known)
        raise NarratorError(f"unknown script label {unknown[0]!r}{hint}; known: {names}; join several with +")
    return label


def read_storyline(text: str, known: Sequence[str] = SCRIPT_LABELS) -> list[str]:
    """A storyline file: a script label (or several joined by "+") a line; blanks and # remarks are skipped.

    Raises `NarratorError` with the line's number where a label is unknown.
    """
    labels = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            try:
                labels.append(check_label(line, known))
            except NarratorError as error:
                raise NarratorError(f"line {number}: {error}") from None
    return labels
