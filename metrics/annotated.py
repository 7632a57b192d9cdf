"""What the annotations and the list of test ids say about the clips of an output.json.

Reading is lenient on purpose: an output is scored as far as its annotations allow, and what they lack is
counted where a metric needs it. (`videonarrator prepare` checks annotations field by field.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from metrics.base import Skips
from metrics.entries import Output, read_object, some
from videonarrator.schema import NarratorError, Product, split_output_key


@dataclass(frozen=True)
class AnnotatedClip:
    """One clip of an annotated video; what the file lacks is None. span: start and end in seconds."""

    reference: str | None
    span: tuple[float, float] | None


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video of an annotation file; product is None where the file has no p_name."""

    product: Product | None
    clips: list[AnnotatedClip]


def read_annotated(path: Path) -> dict[str, AnnotatedVideo]:
    """Video id (the file name without its ending) -> its clips and product, from an annotation file.

    Raises `NarratorError` where it is no annotation file.
    """
    videos = {}
    for name, video in read_object(path, "annotation file").items():
        clips = video.get("frames") if isinstance(video, dict) else None
        if not isinstance(clips, list) or not all(isinstance(clip, dict) for clip in clips):
            raise NarratorError(f'annotation file {path}: video {name!r} has no list of clips under "frames"')
        named, info = video.get("p_name"), video.get("p_info")
        product = (
            Product(named, info if isinstance(info, str) else "")
            if isinstance(named, str) and named.strip()
            else None
        )
        videos[PurePosixPath(name).stem] = AnnotatedVideo(product, [_clip(clip) for clip in clips])
    return videos


def _clip(value: dict[str, Any]) -> AnnotatedClip:
    text, time = value.get("new_text"), value.get("time")
    good = isinstance(time, list) and len(time) == 2 and all(_is_number(second) for second in time)
    return AnnotatedClip(
        text if isinstance(text, str) and text.strip() else None,
        (float(time[0]), float(time[1])) if isinstance(time, list) and good else None,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def restrict(
    output: Output, annotated: Mapping[str, AnnotatedVideo], path: Path, notes: list[str]
) -> tuple[Output, Skips]:
    """The output without the entries that the annotations lack; and the clips that the output lacks."""
    known = {(name, i): clip for name, video in annotated.items() for i, clip in enumerate(video.clips)}
    entries = [entry for entry in output.entries if (entry.video, entry.clip) in known]
    if not entries:
        raise NarratorError(
            f"annotation file {path}: it has none of the output's clips (output: {output.entries[0].key!r}, "
            f"annotations: {', '.join(map(repr, sorted(annotated)[:2]))}, ...); give the "
            "file that the output was made from, or leave --annotations out"
        )
    unknown = [(e.key, "not_in_annotations") for e in output.entries if (e.video, e.clip) not in known]
    present = {(entry.video, entry.clip) for entry in entries}
    absent = [
        (f"{video}_{i}", "not_in_output")
        for (video, i), clip in known.items()
        if clip.reference is not None and (video, i) not in present
    ]
    differing = sum(
        entry.reference is not None
        and (known[entry.video, entry.clip].reference or entry.reference) != entry.reference
        for entry in entries
    )
    if differing:
        notes.append(
            f'{differing} entries have another "gt" than the annotations; the output\'s "gt" is used.'
        )
    return Output(entries, output.rejected + unknown, output.fields), absent


@dataclass(frozen=True)
class Ids:
    """A list of test ids. as_published: what the published code makes of the file (see `corrections`)."""

    listed: list[str]
    as_published: list[str]


def read_ids(path: Path, known: set[str], notes: list[str]) -> Ids:
    """The ids of a split list, `<video id>.mp4` a line (the ending may be absent), each once.

    known: the ids of output and annotations. Raises `NarratorError` where the file has none of them.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NarratorError(
            f"id list {path}: {error}; expected one <video id>.mp4 a line, as test_ids.txt has them"
        ) from None
    lines = [_id(line) for line in text.splitlines()]
    listed = list(dict.fromkeys(filter(None, lines)))
    unknown = [name for name in listed if name not in known]
    if len(unknown) == len(listed):
        raise NarratorError(
            f"id list {path}: none of its {len(listed)} ids ({some(listed, 2)}) is among the videos of the "
            f"output and annotations ({some(sorted(known), 2)})"
        )
    if unknown:
        notes.append(f"{len(unknown)} ids of {path.name} are in no input: {some(unknown, 3)}.")
    repeated = [name for name, count in Counter(filter(None, lines)).items() if count > 1]
    if repeated:
        notes.append(f"{len(repeated)} ids stand more than once in {path.name}: each video is counted once.")
    return Ids(listed, [_id(line) for line in text.split("\n")[:-1]])


def _id(line: str) -> str:
    return line.strip().removesuffix(".mp4")


def keep_ids(output: Output, absent: Skips, ids: list[str]) -> tuple[Output, Skips]:
    """The output and the absent clips without the videos that are not listed; those entries are rejected."""
    chosen = set(ids)
    entries = [entry for entry in output.entries if entry.video in chosen]
    if not entries:
        raise NarratorError("no entry of the output belongs to a listed id")
    left = [(entry.key, "not_in_ids") for entry in output.entries if entry.video not in chosen]
    absent = [(key, why) for key, why in absent if split_output_key(key)[0] in chosen]
    return Output(entries, output.rejected + left, output.fields), absent
