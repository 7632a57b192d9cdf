"""The facts everything else is written in: clips, products, videos, scripts, and the keys of output.json.

Words (the project's own, used everywhere): a *video* is one file; a *clip* is one narrated span of it; a
*frame* is a still sampled at one a second. Seconds are floats from the video's start; clip numbers in prompts
count from 1, clip indices in files and keys from 0. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class NarratorError(Exception):
    """Something the user can mend: the message says what is wrong, what exists, and what to type."""


@dataclass(frozen=True)
class Clip:
    """One narrated span `[start, end)` of a video, in seconds. `text` is None where no narration is known."""

    start: float
    end: float
    label: str = ""
    text: str | None = None

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Product:
    """What is advertised: its name and its knowledge points.

    `info` holds one category a line, as the annotations do: `category：point、point、point`.
    """

    name: str
    info: str = ""

    @property
    def points(self) -> dict[str, list[str]]:
        """Category -> knowledge points, in the order of `info`; a line without a category stands under ""."""
        points: dict[str, list[str]] = {}
        for line in filter(None, self.info.split("\n")):
            category, colon, rest = line.partition("：")
            if not colon:
                category, rest = "", line
            points.setdefault(category, []).extend(filter(None, rest.split("、")))
        return points


@dataclass(frozen=True)
class Video:
    """A video with its product and clips. `id` is the file name without its ending."""

    id: str
    product: Product
    clips: tuple[Clip, ...]
    type: str = ""
    link: str = ""

    @property
    def duration(self) -> float:
        """Sum of the clips' durations in seconds (the measure of `timeline.clip_positions`)."""
        return sum(clip.duration for clip in self.clips)


@dataclass(frozen=True)
class ScriptLine:
    """What a script says of one clip: `low`-`high` is the length asked for, `written` the length obtained.

    flaws: what is wrong with the narration, see `generation.flaws`. seconds: what it takes to say it, see
    `speech`, and fit: how that fits the clip, comfortable, tight, fast or over ("": not known).
    """

    clip: int
    start: float
    end: float
    label: str
    text: str
    low: int
    high: int
    written: int
    flaws: tuple[str, ...] = ()
    seconds: float | None = None
    fit: str = ""

    @property
    def in_range(self) -> bool:
        return self.low <= self.written <= self.high


@dataclass(frozen=True)
class Script:
    """The narration of a whole video. `skipped` maps a clip's index to the reason why it has no line."""

    video_id: str
    product: Product
    lines: tuple[ScriptLine, ...]
    skipped: dict[int, str] = field(default_factory=dict)


GENERATED_KEY = "0.1"
"""Key of the generated narration in output.json: the published sampling temperature, as text."""


def output_key(video_id: str, clip_index: int) -> str:
    """Key of one clip in output.json: `<video id>_<clip index from 0>`."""
    return f"{video_id}_{clip_index}"


def split_output_key(key: str) -> tuple[str, int]:
    """The video id and clip index of a key of output.json. Raises `NarratorError` on another form."""
    video_id, underscore, index = key.rpartition("_")
    if not underscore or not video_id or not index.isdecimal() or index != str(int(index)):
        raise NarratorError(
            f"{key!r} is not a key of an output.json: expected <video id>_<clip index from 0>"
        )
    return video_id, int(index)


def output_entry(reference: str | None, label: str, generated_label: str, narration: str) -> dict[str, Any]:
    """One value of output.json; `gt` is absent where there is no reference narration."""
    entry = {} if reference is None else {"gt": reference}
    return entry | {"label": label, "out_label": generated_label, GENERATED_KEY: narration}
