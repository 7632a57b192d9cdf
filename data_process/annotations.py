"""Annotations, split lists and sample lists: read, checked, written (the formats of the published data set).

A reader reports the mistakes of a whole file together, each with video, clip and field. In these files a
video's "frames" are its clips.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_process.files import Repeated, read_json, read_text, write_json, write_text
from videonarrator.prompt import Story, Template, parse_inputs
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.storyline import check_label

ENDING = ".mp4"
"""Ending of the names that stand for videos in annotations and split lists, whatever the file is called."""

SHOWN = 20
"""So many mistakes of a file are shown at once."""

VIDEO_FIELDS = ("p_name", "p_info", "type", "link", "frames")
CLIP_FIELDS = ("time", "label", "new_text")

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------- annotations


def read_annotations(path: str | Path) -> dict[str, Video]:
    """The videos of an annotation file, by id, in the file's order.

    A clip without `new_text` has text None. Raises one `NarratorError` that names the first 20 mistakes.
    """
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict):
        raise NarratorError(
            f'{path}: expected an object "<video id>{ENDING}": {{...}}, found {_kind(data)}'
            + ("; for a sample list use read_sample_list" if isinstance(data, list) else "")
        )
    mistakes = _repeated_keys(data, "the file")
    videos = {}
    for key, value in data.items():
        found = _video_mistakes(key, value)
        mistakes += found
        if not found:
            video = _video(key, value)
            videos[video.id] = video
    _report(path, mistakes)
    if not videos:
        raise NarratorError(f"{path} holds no videos")
    return videos


def write_annotations(path: str | Path, videos: Iterable[Video]) -> None:
    """Write videos as an annotation file, the inverse of `read_annotations`."""
    data = {}
    for video in videos:
        clips = []
        for clip in video.clips:
            entry: dict[str, Any] = {"time": [clip.start, clip.end]}
            entry |= {"label": clip.label} if clip.label else {}
            entry |= {} if clip.text is None else {"new_text": clip.text}
            clips.append(entry)
        data[video.id + ENDING] = {
            "p_name": video.product.name,
            "p_info": video.product.info,
            "type": video.type,
            "link": video.link,
            "frames": clips,
        }
    write_json(Path(path), data)


def _video(key: str, value: Mapping[str, Any]) -> Video:
    clips = tuple(
        Clip(
            float(clip["time"][0]),
            float(clip["time"][1]),
            clip.get("label") or "",
            clip["new_text"] if (clip.get("new_text") or "").strip() else None,
        )
        for clip in value["frames"]
    )
    product = Product(value["p_name"], value["p_info"])
    return Video(key.removesuffix(ENDING), product, clips, value.get("type") or "", value.get("link") or "")


def _video_mistakes(key: str, value: Any) -> list[str]:
    where = f"video {key}"
    mistakes = []
    if not key.endswith(ENDING) or not key.removesuffix(ENDING).strip() or re.search(r"[/\\\n\r]", key):
        mistakes.append(f"video {key!r}: the name must be <video id>{ENDING}, without a folder")
    if not isinstance(value, dict):
        return [
            *mistakes,
            f"{where}: expected an object with {', '.join(VIDEO_FIELDS)}, found {_kind(value)}",
        ]
    mistakes += _repeated_keys(value, where) + _misspelt(value, VIDEO_FIELDS, where)
    for field in ("p_name", "p_info"):
        if field not in value:
            mistakes.append(f'{where}: no {field}; it has {_names(value)}. Add "{field}": "..."')
    mistakes += [
        f"{where}: {field} must be text, found {_kind(value[field])}"
        for field in ("p_name", "p_info", "type", "link")
        if field in value and not isinstance(value[field], str)
    ]
    name = value.get("p_name")
    if isinstance(name, str) and (not name.strip() or _broken(name)):
        mistakes.append(f"{where}: p_name must be one line that is not empty, found {name!r}")
    clips = value.get("frames")
    if not isinstance(clips, list) or not clips:
        found = "it has " + _names(value) if "frames" not in value else f"found {_kind(clips)}"
        return [*mistakes, f'{where}: frames must be the list of its clips, {{"time": [0, 5], ...}}; {found}']
    for number, clip in enumerate(clips, 1):
        mistakes += _clip_mistakes(f"{where}, clip {number}", clip)
    return mistakes


def _clip_mistakes(where: str, clip: Any) -> list[str]:
    if not isinstance(clip, dict):
        return [f"{where}: expected an object with {', '.join(CLIP_FIELDS)}, found {_kind(clip)}"]
    mistakes = _repeated_keys(clip, where) + _misspelt(clip, CLIP_FIELDS, where)
    label, text = clip.get("label"), clip.get("new_text")
    if "time" not in clip:
        mistakes.append(f'{where}: no time; it has {_names(clip)}. Add "time": [start, end] in seconds')
    else:
        mistakes += [f"{where}: {found}" for found in _time_mistakes(clip["time"])]
    if label is not None and not isinstance(label, str):
        mistakes.append(f"{where}: label must be text, found {_kind(label)}")
    elif label:
        if _broken(label):
            mistakes.append(f"{where}: label {label!r} holds a line break")
        try:
            check_label(label)
        except NarratorError as error:
            mistakes.append(f"{where}: label: {error}")
    if text is not None and not isinstance(text, str):
        mistakes.append(
            f"{where}: new_text must be text, found {_kind(text)}; leave it out where there is none"
        )
    elif text and _broken(text):
        mistakes.append(f"{where}: new_text holds a line break: {text!r}; a narration is one line")
    return mistakes


def _time_mistakes(time: Any) -> list[str]:
    if not isinstance(time, list) or len(time) != 2:
        return [f"time must be [start, end] in seconds, found {time!r}"]
    wrong = [v for v in time if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v)]
    if wrong:
        return [f"time must be two numbers of seconds, found {wrong[0]!r}"]
    start, end = time
    if start < 0:
        return [f"time starts before the video does: {time}"]
    if end <= start:
        return [f"time ends at {end} s, not after its start at {start} s"]
    return []


# ------------------------------------------------------------------------------------- split lists


def read_split(path: str | Path, known: Collection[str] | None = None) -> list[str]:
    """The video ids of a split list (one `<video id>.mp4` a line), in order.

    An id that stands there twice is reported (a warning of this module's logger) and counted once.
    known: ids that exist. Raises `NarratorError` naming those that do not.
    """
    lines = [line.strip() for line in read_text(Path(path)).splitlines()]
    ids = [line.removesuffix(ENDING) for line in lines if line]
    unknown = [] if known is None else sorted(set(ids) - set(known))
    if unknown:
        raise NarratorError(
            f"{path}: {len(unknown)} of {len(set(ids))} ids are not in the annotations: {_some(unknown)}"
        )
    if not ids:
        raise NarratorError(f"{path} names no videos: expected one <video id>{ENDING} a line")
    return once(ids, str(path))


def write_split(path: str | Path, ids: Iterable[str]) -> None:
    """Write a split list: one `<video id>.mp4` a line."""
    write_text(Path(path), "".join(f"{video_id}{ENDING}\n" for video_id in ids))


def once(ids: Iterable[str], where: str) -> list[str]:
    """`ids` in order, each once; a warning names those that stood there more than once."""
    counts = Counter(ids)
    twice = [video_id for video_id, count in counts.items() if count > 1]
    if twice:
        log.warning(
            "%s: %d ids stand there more than once, counted once: %s", where, len(twice), _some(twice)
        )
    return list(counts)


# ------------------------------------------------------------------------------------ sample lists


@dataclass(frozen=True)
class SampleVideo:
    """A video of a sample list: its facts, and its story as the prompt tells it, ranges included.

    timed: the clips' times are known (to the second, from the names of the images); otherwise all are 0.
    """

    video: Video
    story: Story
    timed: bool


def read_sample_list(path: str | Path, template: Template) -> list[SampleVideo]:
    """The videos of a sample list (training_data.json, train.json, test.json), in its order.

    template: the wording of its `inputs`. A clip that the list leaves out has text None; where the images do
    not tell its time, it fills the gap between its neighbours. An id met twice is reported and taken once.
    Raises one `NarratorError` that names the first 20 mistakes.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise NarratorError(
            f'{path}: expected an array of {{"inputs", "id", "frames"}}, found {_kind(entries)}'
        )
    videos: dict[str, SampleVideo] = {}
    mistakes, ids = [], []
    for number, entry in enumerate(entries, 1):
        try:
            video = _sample_video(entry, template)
        except NarratorError as error:
            name = entry["id"] if isinstance(entry, dict) and "id" in entry else "without id"
            mistakes.append(f"entry {number} (video {name}): {error}")
            continue
        ids.append(video.video.id)
        if videos.setdefault(video.video.id, video) != video:
            mistakes.append(f"entry {number} (video {video.video.id}): an earlier entry says something else")
    _report(path, mistakes)
    once(ids, str(path))
    return list(videos.values())


def _sample_video(entry: Any, template: Template) -> SampleVideo:
    if not isinstance(entry, dict):
        raise NarratorError(f"expected an object, found {_kind(entry)}")
    missing = [key for key in ("inputs", "id", "frames") if key not in entry]
    if missing:
        raise NarratorError(f"no {', '.join(missing)}; it has {_names(entry)}")
    if not isinstance(entry["id"], str) or not isinstance(entry["inputs"], str):
        raise NarratorError("inputs and id must be text")
    story = parse_inputs(entry["inputs"], template)
    numbers = [clip.number for clip in story.clips]
    if numbers != sorted(set(numbers)) or not all(1 <= number <= story.total for number in numbers):
        raise NarratorError(f"inputs: the clips are numbered {numbers} of {story.total}")
    expected = [clip_file(entry["id"], number - 1) for number in numbers]
    if entry["frames"] != expected:
        raise NarratorError(f"frames are {entry['frames']}, but inputs tell of {expected}")
    for clip in story.clips:
        if template.label:
            try:
                check_label(clip.label)
            except NarratorError as error:
                raise NarratorError(f"clip {clip.number}: {error}") from None
    spans = _spans(entry.get("images"), story)
    told = {clip.number: clip for clip in story.clips}
    clips = []
    for number, (start, end) in enumerate(spans or [(0.0, 0.0)] * story.total, 1):
        clip = told.get(number)
        clips.append(Clip(start, end, clip.label if clip else "", clip.text if clip else None))
    video = Video(entry["id"], story.product, tuple(clips), link=entry.get("link") or "")
    return SampleVideo(video, story, timed=spans is not None)


def _spans(images: Any, story: Story) -> list[tuple[float, float]] | None:
    """(start, end) of each clip: the first image k gives start k-1, the last one m gives end m."""
    if images is None:
        return None
    if len(images) == story.total:
        numbers = list(range(1, story.total + 1))
    elif len(images) == len(story.clips):
        numbers = [clip.number for clip in story.clips]
    else:  # clips with text but without frames have images, and nothing says which they are
        return None
    spans = {
        number: (float(_image_number(names[0]) - 1), float(_image_number(names[-1])))
        for number, names in zip(numbers, images, strict=True)
        if names
    }
    filled, end = [], 0.0
    for number in range(1, story.total + 1):
        following = next((spans[n][0] for n in range(number, story.total + 1) if n in spans), end)
        filled.append(spans.get(number, (end, max(following, end))))
        end = filled[-1][1]
    return filled


def _image_number(name: Any) -> int:
    match = re.search(r"_(\d+)\.jpg$", str(name))
    if match is None:
        raise NarratorError(f"images: {name!r} is not named <video id>_<number>.jpg")
    return int(match[1])


def clip_file(video_id: str, index: int) -> str:
    """The name that stands for a clip's tensor in sample lists (a file, in the published system)."""
    return f"{video_id}_{index}.pkl"


def image_file(video_id: str, number: int) -> str:
    """The name that stands for frame `number` (from 1) in sample lists."""
    return f"{video_id}_{number:03d}.jpg"


# ------------------------------------------------------------------------------------------ wording


def _report(path: Path, mistakes: list[str]) -> None:
    if mistakes:
        more = [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise NarratorError("\n  ".join([f"{path}: {count}", *mistakes[:SHOWN], *more]))


def _repeated_keys(value: dict[str, Any], where: str) -> list[str]:
    names = value.repeated if isinstance(value, Repeated) else ()
    return [f"{where}: {name!r} stands there twice; keep one" for name in names]


def _misspelt(value: dict[str, Any], fields: tuple[str, ...], where: str) -> list[str]:
    absent = [field for field in fields if field not in value]
    near = {key: difflib.get_close_matches(key, absent, 1, 0.8) for key in value if key not in fields}
    return [f"{where}: unknown field {key!r}; write {match[0]!r}" for key, match in near.items() if match]


def _broken(text: str) -> bool:
    return "\n" in text or "\r" in text


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        name = "object" if isinstance(value, dict) else "array"
        return f"an {name}" if value else f"an empty {name}"
    return {str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _names(value: dict[str, Any]) -> str:
    return ", ".join(value) or "nothing"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
