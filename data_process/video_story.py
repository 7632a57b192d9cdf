"""The English "Video Story" annotations (Li et al. 2018): a folder of text files, one a video.

A file's first line is the video's file name; each further line is a clip, `mm:ss mm:ss sentence`. Minutes may
pass 59; times are whole seconds. There is neither product nor script label in these files.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from data_process.annotations import SHOWN
from data_process.files import read_text
from data_process.video_file import VIDEO_ENDINGS
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.weight_files import listing

ENDING = ".txt"
"""Ending of the annotation files; others in the folder are passed over."""

KIND = "Video Story"
"""The `type` of these videos."""

CLIP_LINE = re.compile(r"([0-9]+):([0-9]{2})\s+([0-9]+):([0-9]{2})(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class VideoStory:
    """What a folder holds.

    lengthened: names of the clips whose line ends in the second in which it starts; out_of_order: of those
    that start before the clip above.
    """

    videos: list[Video]
    lengthened: list[str]
    out_of_order: list[str]


def read_video_story(folder: str | Path) -> VideoStory:
    """The videos of a folder of "Video Story" text files, by file name.

    A video's id is its file name without the ending; as nothing is said of a product, that is also its
    product's name, which an annotation file must have. A line whose times are equal is less than a second
    long: it gets its whole second. The order of the lines stays. White space inside a sentence becomes one
    blank; empty lines are passed over. Raises one `NarratorError` that names the first 20 mistakes of all
    files.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.glob(f"*{ENDING}") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise NarratorError(
            f"{folder} holds no {ENDING} files (found: {listing(folder)}): give the annotations' folder, a "
            "text file a video, with its file name, then lines such as 00:05 00:12 We walk along the beach."
        )
    story = VideoStory([], [], [])
    mistakes: list[str] = []
    known: dict[str, Path] = {}
    for file in files:
        mistakes += _read_file(file, known, story)
    if mistakes:
        more = [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise NarratorError("\n  ".join([f"{folder}: {count}", *mistakes[:SHOWN], *more]))
    return story


def _read_file(file: Path, known: dict[str, Path], story: VideoStory) -> list[str]:
    """Add a file's video to `story` and `known` (id -> file); its mistakes."""
    try:
        text = read_text(file)
    except NarratorError as error:
        return [str(error)]
    # not splitlines: that would cut a sentence at rare characters, too
    numbered = [(n, line.strip()) for n, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]
    if not numbered:
        return [f"{file.name}: it is empty; the first line must be the video's file name"]
    mistakes = []
    number, name = numbered[0]
    video_id = name
    if Path(name).suffix.lower() in VIDEO_ENDINGS:
        video_id = name[: -len(Path(name).suffix)]
    if CLIP_LINE.fullmatch(name):
        mistakes.append(
            f"{file.name}, line {number}: {name!r:.60} is a clip; above it must be the video's name"
        )
    elif not video_id.strip() or re.search(r"[/\\]", name) or _odd(name):
        mistakes.append(
            f"{file.name}, line {number}: {name!r:.60} must be a video's file name, without folder"
        )
    elif video_id in known:
        mistakes.append(
            f"{file.name}, line {number}: video {video_id} stands in {known[video_id].name}, too; keep one "
            "of the files"
        )
    known.setdefault(video_id, file)
    clips: list[Clip] = []
    for number, line in numbered[1:]:
        where = f"{file.name}, line {number}"
        try:
            clip, short = _clip(line)
        except NarratorError as error:
            mistakes.append(f"{where}: {error}")
            continue
        if short:
            story.lengthened.append(where)
        if clips and clip.start < clips[-1].start:
            story.out_of_order.append(where)
        clips.append(clip)
    if len(numbered) == 1 and not mistakes:
        mistakes.append(f"{file.name}: no clip follows the video's name {name!r:.60}")
    story.videos.append(Video(video_id, Product(video_id), tuple(clips), type=KIND))
    return mistakes


def _clip(line: str) -> tuple[Clip, bool]:
    """A line's clip, and whether it was given its whole second."""
    match = CLIP_LINE.fullmatch(line)
    if match is None:
        raise NarratorError(f"{line!r:.60} is not of the form mm:ss mm:ss sentence")
    late = [second for second in (match[2], match[4]) if int(second) > 59]
    if late:
        raise NarratorError(f"{line!r:.60} has {late[0]} seconds; 59 is the last")
    start, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    if end < start:
        raise NarratorError(f"{line!r:.60} ends before it starts")
    sentence = " ".join((match[5] or "").split())
    if not sentence:
        raise NarratorError(f"{line!r:.60} has no sentence; write one, or take the line out")
    if odd := _odd(sentence):
        raise NarratorError(f"the sentence holds the control character {odd}: take it out")
    return Clip(float(start), float(max(end, start + 1)), text=sentence), end == start


def _odd(text: str) -> str:
    """The first control character of a text, by its number; "" where there is none."""
    return next((f"U+{ord(char):04X}" for char in text if unicodedata.category(char) == "Cc"), "")
