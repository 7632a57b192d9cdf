"""Frames: the stills of a video at one a second, chosen by time and not by counting pictures.

Frame k (from 1) is what is on screen at second k-1: the last picture whose presentation time, measured from
the first picture, is not later. That holds at any frame rate, a variable one too. The choice is made once,
from the file's own time stamps; decord or PyAV then only decode the chosen pictures, in order and without
seeking, and nothing but the still at hand is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_process.video_file import VideoInfo, VideoScan, decode_pictures, probe, scan_video, to_rgb
from videonarrator.schema import NarratorError

__all__ = ["Backend", "VideoInfo", "iter_frames", "probe", "read_frames"]

Backend = Literal["auto", "decord", "pyav"]

CLOCK_TOLERANCE = 0.005
"""Seconds by which decord's time of a picture (single precision) may differ from the file's."""


def read_frames(
    video_path: str | Path, numbers: Iterable[int], *, backend: Backend = "auto"
) -> dict[int, np.ndarray]:
    """The asked-for frames of a video, frame number -> still. All stills are held: see `iter_frames`."""
    return dict(iter_frames(video_path, numbers, backend=backend))


def iter_frames(
    video_path: str | Path, numbers: Iterable[int], *, backend: Backend = "auto"
) -> Iterator[tuple[int, np.ndarray]]:
    """Frame number and still of each asked-for frame, ascending, each number once.

    A still is a uint8 array [height, width, 3], RGB, turned as the file asks; where one picture stays on
    screen for several seconds its frames share one array. A video of d seconds has frames 1..ceil(d), at
    least one.

    backend: "pyav", "decord", or "auto" = decord where it is installed and can be trusted, else PyAV. decord
    0.6.0 gives wrong pictures, without a word, for fragmented mp4, transport streams, HEVC with open groups,
    MPEG-4 with B-pictures and more than 8 bits, and passes over edit lists; so it is used for plain H.264 mp4
    alone, and only where its count and times of the pictures are the file's. There both back ends give the
    same stills, bit by bit.

    Raises `NarratorError`, before the first still, where the file is unusable (see `video_file.probe`), a
    frame does not exist, or decord was asked for and cannot do it; later, where a picture cannot be decoded.
    """
    scan = scan_video(video_path)
    wanted = sorted(set(numbers))
    outside = [k for k in wanted if not 1 <= k <= scan.info.n_frames]
    if outside:
        names = ", ".join(map(str, outside[:10])) + (", ..." if len(outside) > 10 else "")
        raise NarratorError(
            f"{video_path} lasts {scan.info.duration_s:g} s and has frames 1..{scan.info.n_frames} "
            f"(frame k is at second k-1); not there: {names}; mend the clips that reach past the video"
        )
    chosen: dict[int, list[int]] = {}  # picture -> frames
    for number in wanted:
        chosen.setdefault(scan.shown_at(number - 1), []).append(number)
    if backend == "pyav":
        return _with_pyav(video_path, scan, chosen)
    reader = _decord_reader(video_path, scan)
    if not isinstance(reader, str):
        return _with_decord(video_path, reader, chosen)
    if backend == "decord":
        raise NarratorError(f"decord cannot be used for {video_path}: {reader}; use the pyav back end")
    return _with_pyav(video_path, scan, chosen)


def _with_pyav(
    path: str | Path, scan: VideoScan, chosen: dict[int, list[int]]
) -> Iterator[tuple[int, np.ndarray]]:
    times = {scan.time(index): numbers for index, numbers in chosen.items()}
    if not times:
        return
    for time, picture in decode_pictures(path):
        if time in times:
            still = to_rgb(picture)
            for number in times.pop(time):
                yield number, still
            if not times:
                return
    lost = ", ".join(f"{float(time):.3f}" for time in sorted(times))
    raise NarratorError(f"{path} is damaged: the pictures at {lost} s cannot be decoded; export it again")


def _decord_reader(path: str | Path, scan: VideoScan) -> Any:
    """decord's reader of the file, or, as text, why it cannot be trusted with it."""
    try:
        import decord
    except ImportError:
        return "it is not installed (pip install decord; Linux x86-64 only)"
    if not scan.plain:
        return "it is only right about H.264 with 8 bits a colour in an mp4 that is not fragmented"
    try:
        reader = decord.VideoReader(str(path))
        starts = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
    except (RuntimeError, decord.DECORDError) as error:
        return f"it cannot open it ({str(error).splitlines()[0]})"
    times = np.array(scan.ticks, dtype=np.float64) * float(scan.time_base)
    if len(starts) != len(times):
        return f"it sees {len(starts)} pictures where {len(times)} are shown"
    if np.abs(starts - starts[0] - times).max() > CLOCK_TOLERANCE:
        return "its times are not those of the file"
    return reader


def _with_decord(
    path: str | Path, reader: Any, chosen: dict[int, list[int]]
) -> Iterator[tuple[int, np.ndarray]]:
    import decord

    position = 0
    for index, numbers in chosen.items():
        try:
            if index > position:
                reader.skip_frames(index - position)
            still = reader.next().asnumpy()
        except (StopIteration, decord.DECORDError) as error:
            raise NarratorError(
                f"{path} is damaged: decord cannot decode the picture of frame {numbers[0]}; export it again"
            ) from error
        position = index + 1
        for number in numbers:
            yield number, still
