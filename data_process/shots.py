"""Clips of a new video: shots found by PySceneDetect and fitted to lengths that can be narrated, or a cut
list.

A shot here is what lies between two cuts; a clip is what is narrated: too short shots are merged into a
neighbour, too long ones split evenly (paper, section 3: videos are segmented into shots before they are
narrated).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from data_process.files import read_json, read_text, replacing
from data_process.video_file import VideoInfo, decode_pictures, scan_video
from videonarrator.schema import Clip, NarratorError
from videonarrator.storyline import check_label

Detector = Literal["adaptive", "content"]

THRESHOLDS: dict[str, float] = {"adaptive": 3.0, "content": 27.0}
"""PySceneDetect's own thresholds. adaptive: how many times its neighbours' change a cut's change is;
content: the change itself (mean absolute difference of hue, saturation and value, 0..255)."""

MIN_CHANGE = 8.0
"""adaptive: the least change (as in content) that can be a cut; drawn scenes change less than real ones."""

DETECTION_SIDE = 256
"""Pictures are made this many pixels long (longer side) before they are compared."""

LONG_STILL_SECONDS = 0.2
"""A picture that stays on screen longer is shown to the detector more than once, as it is to the viewer."""

CUT_TOLERANCE = 0.1
"""Seconds by which a cut list may reach past the video; such clips are cut to the video."""


def detect_clips(
    video_path: str | Path,
    *,
    detector: Detector = "adaptive",
    threshold: float | None = None,
    min_seconds: float = 1.0,
    max_seconds: float = 15.0,
) -> list[Clip]:
    """Cut a video into clips at its hard cuts; they cover it without gaps, from 0 to its end.

    detector: "adaptive" compares each change with those around it, so that camera motion is no cut; "content"
    takes the change as it is. threshold: None takes the detector's own (`THRESHOLDS`). min_seconds,
    max_seconds: see `fit_shots`. Times are in seconds, to the millisecond.

    Raises `NarratorError` where the video is unusable (see `video_file.probe`) or a setting is.
    """
    _check_limits(min_seconds, max_seconds)
    if detector not in THRESHOLDS:
        raise NarratorError(f"unknown detector {detector!r}; known: {', '.join(THRESHOLDS)}")
    info = scan_video(video_path).info
    cuts = _find_cuts(video_path, info, detector, THRESHOLDS[detector] if threshold is None else threshold)
    ends = fit_shots([0.0, *cuts, info.duration_s], min_seconds, max_seconds)
    return [Clip(start, end) for start, end in pairwise(ends)]


def cut_settings(
    detector: Detector = "adaptive",
    threshold: float | None = None,
    min_seconds: float = 1.0,
    max_seconds: float = 15.0,
) -> dict[str, Any]:
    """Every setting that can move a cut, as `write_cuts` stores it, the detector's own threshold filled
    in."""
    settings: dict[str, Any] = {
        "detector": detector,
        "threshold": THRESHOLDS[detector] if threshold is None else threshold,
    }
    if detector == "adaptive":
        settings["min_change"] = MIN_CHANGE
    limits = {"min_seconds": min_seconds, "max_seconds": max_seconds}
    return settings | limits | {"scenedetect": version("scenedetect")}


def fit_shots(
    boundaries: Sequence[float], min_seconds: float = 1.0, max_seconds: float = 15.0
) -> list[float]:
    """Boundaries of clips from boundaries of shots: both from the video's start to its end, in seconds,
    ascending.

    While a shot is shorter than `min_seconds`, the shortest one is merged into its shorter neighbour (the
    earlier one where they are equal); then each shot longer than `max_seconds` is split into as few equal
    parts as keep to it. So no clip is longer than `max_seconds`, and none shorter than `min_seconds` unless
    the whole video is or max_seconds < 2 * min_seconds leaves no other way. The result is in whole
    milliseconds. Raises `NarratorError` where 0 <= min_seconds <= max_seconds does not hold.
    """
    _check_limits(min_seconds, max_seconds)
    ends = sorted({round(boundary, 3) for boundary in boundaries})
    while len(ends) > 2:
        lengths = [round(b - a, 3) for a, b in pairwise(ends)]
        shortest = min(range(len(lengths)), key=lengths.__getitem__)
        if lengths[shortest] >= min_seconds:
            break
        is_last = shortest == len(lengths) - 1
        with_earlier = shortest > 0 and (is_last or lengths[shortest - 1] <= lengths[shortest + 1])
        del ends[shortest if with_earlier else shortest + 1]
    fitted = ends[:1]
    for start, end in pairwise(ends):
        parts = math.ceil(round((end - start) / max_seconds, 9))
        fitted += [round(start + (end - start) * part / parts, 3) for part in range(1, parts)] + [end]
    return fitted


def read_cuts(path: str | Path, duration: float) -> list[Clip]:
    """A user's own cut list for a video of `duration` seconds; gaps between clips are allowed.

    JSON: a list of [start, end] pairs or of objects {"start", "end"[, "label"]}, or an object that holds such
    a list as "clips" (what `write_cuts` writes). CSV (by its ending): a header with the columns start, end
    and, if there are labels, label; other columns are passed over. Times in seconds; a clip that reaches past
    the video by no more than `CUT_TOLERANCE` is cut to it.

    Raises `NarratorError` with the file, the clip's number (from 1) and the field: a time that is no number,
    end not after start, outside the video, out of order or overlapping, an unknown label.
    """
    path = Path(path)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    if not rows:
        raise NarratorError(f"{path} holds no clip; give at least one start and end")
    clips: list[Clip] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, clip {number}"
        start, end = _time(where, "start", row, duration), _time(where, "end", row, duration)
        if end <= start:
            raise NarratorError(f"{where}: end {end:g} is not after start {start:g}")
        if clips and start < clips[-1].end:
            raise NarratorError(
                f"{where}: start {start:g} lies before the end {clips[-1].end:g} of clip {number - 1}; "
                "clips stand in order and do not overlap"
            )
        label = row.get("label") or ""
        if label:
            try:
                check_label(label if isinstance(label, str) else repr(label))
            except NarratorError as error:
                raise NarratorError(f"{where}, label: {error}") from None
        clips.append(Clip(start, end, label))
    return clips


def write_cuts(
    clips: Sequence[Clip],
    path_json: str | Path,
    path_csv: str | Path,
    *,
    video: str,
    info: VideoInfo,
    settings: Mapping[str, Any],
) -> None:
    """Write clips as JSON (with the video's name and measures and the settings they were cut with) and as
    CSV.

    video: the video's file name. settings: see `cut_settings`. `read_cuts` reads both files. Neither takes
    its place before both are written. Raises `NarratorError` where a file cannot be written.
    """
    rows = [
        {"clip": number, "start": clip.start, "end": clip.end} | ({"label": clip.label} if clip.label else {})
        for number, clip in enumerate(clips, 1)
    ]
    value = {
        "video": video,
        "duration": info.duration_s,
        "fps": round(info.fps, 3),
        "width": info.width,
        "height": info.height,
        "settings": dict(settings),
        "clips": rows,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, ["clip", "start", "end", "label"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(Path(path_json)) as json_part, replacing(Path(path_csv)) as csv_part:
        json_part.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        csv_part.write_text(table.getvalue(), encoding="utf-8", newline="")


def _find_cuts(path: str | Path, info: VideoInfo, detector: str, threshold: float) -> list[float]:
    """Times in seconds at which a new shot starts."""
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
    from scenedetect.common import Timecode

    if detector == "adaptive":
        finder = AdaptiveDetector(threshold, min_scene_len=0, min_content_val=MIN_CHANGE)
    else:
        finder = ContentDetector(threshold, min_scene_len=0)
    scale = min(1.0, DETECTION_SIDE / max(info.width, info.height))
    cuts: list[float] = []
    image: Any = None
    shown = Fraction(0)

    def show(time: Fraction) -> None:
        timecode = FrameTimecode(Timecode(time.numerator, Fraction(1, time.denominator)), info.fps)
        cuts.extend(cut.seconds for cut in finder.process_frame(timecode, image))

    def hold(until: Fraction) -> None:
        if image is not None and until - shown > LONG_STILL_SECONDS:
            show(shown + (until - shown) / 3)
            show(shown + (until - shown) * 2 / 3)

    for time, picture in decode_pictures(path):
        hold(time)
        width, height = (max(2, round(side * scale)) for side in (picture.width, picture.height))
        image, shown = picture.reformat(width=width, height=height, format="bgr24").to_ndarray(), time
        show(time)
    hold(Fraction(info.duration_s))
    return cuts


def _check_limits(min_seconds: float, max_seconds: float) -> None:
    if not 0 <= min_seconds <= max_seconds or max_seconds < 0.1:
        raise NarratorError(
            f"min_seconds={min_seconds:g} and max_seconds={max_seconds:g}: "
            "expected 0 <= min_seconds <= max_seconds, and max_seconds at least 0.1"
        )


def _json_rows(path: Path) -> list[Mapping[str, Any]]:
    value = read_json(path)
    if isinstance(value, dict):
        value = value.get("clips")
    if not isinstance(value, list):
        raise NarratorError(
            f"{path} is no cut list: expected a list of [start, end] pairs or of objects with start and end, "
            'or an object that holds one as "clips"'
        )
    rows: list[Mapping[str, Any]] = []
    for number, row in enumerate(value, 1):
        if isinstance(row, list) and len(row) == 2:
            row = {"start": row[0], "end": row[1]}
        if not isinstance(row, dict):
            raise NarratorError(
                f"{path}, clip {number}: expected [start, end] or an object with start and end, not {row!r}"
            )
        rows.append(row)
    return rows


def _csv_rows(path: Path) -> list[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True)
    columns = [column.strip().lower() for column in reader.fieldnames or ()]
    if not {"start", "end"} <= set(columns):
        found = ",".join(columns) or "none"
        raise NarratorError(f"{path}: the first line must name the columns start,end[,label], not {found}")
    reader.fieldnames = columns
    return [{column: (row[column] or "").strip() for column in columns} for row in reader]


def _time(where: str, field: str, row: Mapping[str, Any], duration: float) -> float:
    """A clip's start or end in seconds, within the video."""
    if field not in row:
        raise NarratorError(f"{where}: {field} is missing")
    value = row[field]
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise NarratorError(f"{where}: {field} {value!r} is not a number of seconds")
    if not -CUT_TOLERANCE <= seconds <= duration + CUT_TOLERANCE:
        raise NarratorError(f"{where}: {field} {seconds:g} lies outside the video (0 to {duration:g} s)")
    return min(max(seconds, 0.0), duration)
