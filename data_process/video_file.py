"""Opening a video file, measuring it, and decoding its pictures in the order and at the times they are shown.

Times are presentation times relative to the first picture that is shown, exact as fractions: nothing here
counts pictures and divides by a frame rate. Only PyAV is used; no ffmpeg program is needed. What is wrong
with a file is said in a `NarratorError` before anything is made of it: a file that was cut off does not pass
as a shorter video.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from videonarrator.schema import NarratorError

VIDEO_ENDINGS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")

MISSING_SECONDS = 0.5
"""How much earlier than declared a file may end that has no index of its pictures (all but mp4 and mov)."""


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` measures of a video.

    duration_s: from the first picture's start to the last one's end, to the millisecond. fps: pictures a
    second on average. width, height: in pixels, as shown (after rotation). n_pictures: encoded pictures that
    are shown. rotation: degrees counterclockwise (0, 90, 180 or 270) by which the stored pictures are turned
    to be shown.
    """

    duration_s: float
    fps: float
    width: int
    height: int
    n_pictures: int
    rotation: int = 0

    @property
    def n_frames(self) -> int:
        """How many frames (stills at one a second) the video has: frame k is at second k-1; at least one."""
        return max(1, math.ceil(self.duration_s))


@dataclass(frozen=True)
class VideoScan:
    """A video's measures and its table of times: `ticks`, ascending from 0, in units of `time_base` seconds.

    plain: H.264 with 8 bits a colour in an mp4 or mov, neither fragmented nor edited: what decord reads as it
    should.
    """

    info: VideoInfo
    ticks: list[int]
    time_base: Fraction
    plain: bool

    def shown_at(self, second: int) -> int:
        """Index of the picture that is on screen at `second`: the last one whose time is not later."""
        return bisect_right(self.ticks, math.floor(second / self.time_base)) - 1

    def time(self, index: int) -> Fraction:
        """Presentation time of picture `index` in seconds."""
        return self.ticks[index] * self.time_base


def find_videos(given: Iterable[str | Path]) -> list[Path]:
    """Video files from files and folders, in order; two of one name (the id) are an error."""
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_ENDINGS)
            if not inside:
                raise NarratorError(f"{path} holds no video (looked for {', '.join(VIDEO_ENDINGS)})")
            found += inside
        else:
            found.append(path)
    names: dict[str, Path] = {}
    for path in found:
        if path.stem in names:
            raise NarratorError(
                f"{names[path.stem]} and {path} would have the same id {path.stem!r}: rename one"
            )
        names[path.stem] = path
    return found


def for_each_video(
    videos: Sequence[Path], work: Callable[[Path], None], what: str, say: Callable[[str], None]
) -> dict[str, str]:
    """Do `work` on each video; one that fails with a `NarratorError` stops no other. Failed video -> reason.

    what: what is made, for the lines about the progress that `say` gets.
    """
    failed: dict[str, str] = {}
    for done, path in enumerate(videos, 1):
        try:
            work(path)
        except NarratorError as error:
            failed[str(path)] = str(error)
            say(f"failed: {error}")
        if done % 10 == 0 or done == len(videos):
            say(f"{what} of {done - len(failed)}/{len(videos)} videos")
    return failed


def probe(video_path: str | Path) -> VideoInfo:
    """Measure a video by reading through its packets (only the first picture is decoded).

    Raises `NarratorError` where the file is missing, empty, no video, cut off or damaged.
    """
    return scan_video(video_path).info


def scan_video(video_path: str | Path) -> VideoScan:
    """A video's measures and the presentation time of each of its pictures. Errors as in `probe`."""
    path = Path(video_path)
    with open_video(path) as (container, stream):
        base = _fraction(stream.time_base)
        size = path.stat().st_size
        if any(entry.pos + entry.size > size for entry in stream.index_entries):
            raise _cut_off(path, "its index points past the end of the file")
        spans: list[tuple[int, int]] = []  # start and length of each picture, in the order of decoding
        first: av.VideoFrame | None = None
        end = Fraction(0)  # of all streams: the declared length may be that of the sound
        for packet in container.demux():
            time = _time(packet)
            if time is not None:
                end = max(end, (time + (packet.duration or 0)) * _fraction(packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if first is None:
                first = next(iter(stream.decode(packet)), None)
            if packet.is_corrupt:
                raise _cut_off(path, "a picture is incomplete")
            if packet.size and not packet.is_discard:
                if time is None:
                    raise NarratorError(f"{path} stores no times of its pictures; convert it to an mp4")
                spans.append((time, packet.duration or 0))
        if first is None or first.pts is None:
            raise NarratorError(f"{path} holds no picture that can be decoded; {_AGAIN}")
        declared = Fraction(container.duration or 0, av.time_base)
        is_mp4 = "mp4" in container.format.name
        if not is_mp4 and declared > end + MISSING_SECONDS:
            raise _cut_off(path, f"it should last {float(declared):.1f} s and ends at {float(end):.1f} s")
        whole_mp4 = is_mp4 and stream.frames == len(spans)
        plain = whole_mp4 and stream.codec_context.name == "h264" and _has_8_bits(first)
        usual = 1 / _fraction(stream.average_rate) if stream.average_rate else Fraction(1, 25)
    start = first.pts
    starts = sorted(span for span in spans if span[0] >= start)
    ticks = [pts - start for pts, _ in starts]
    duration = ticks[-1] * base + (starts[-1][1] * base or usual)  # the last one's length may not be stored
    rotation = _quarter_turns(first) * 90
    width, height = (first.height, first.width) if rotation in (90, 270) else (first.width, first.height)
    seconds, fps = max(round(float(duration), 3), 0.001), float(len(ticks) / duration)
    info = VideoInfo(seconds, fps, width, height, len(ticks), rotation)
    return VideoScan(info, ticks, base, plain)


def decode_pictures(video_path: str | Path) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Every picture of a video as stored (not turned), with its time in seconds; one at a time in memory.

    Raises `NarratorError` at a picture that cannot be decoded or is damaged.
    """
    with open_video(video_path) as (container, stream):
        stream.thread_type = "AUTO"
        in_order = container.format.name == "avi"  # it stores times of decoding: they go by order
        stored: list[int | None] = []
        start: int | None = None
        for packet in container.demux(stream):
            if in_order and packet.size:
                stored.append(_time(packet))
            for picture in packet.decode():
                ticks = stored.pop(0) if in_order else picture.pts
                if ticks is None:
                    raise NarratorError(f"{video_path} has pictures without a time; convert it to an mp4")
                start = ticks if start is None else start
                time = (ticks - start) * _fraction(picture.time_base)
                if picture.is_corrupt:
                    raise NarratorError(
                        f"{video_path}: the picture at {float(time):.3f} s is damaged; {_AGAIN}"
                    )
                yield time, picture


def to_rgb(picture: av.VideoFrame) -> Any:
    """A decoded picture as it is shown: uint8 array [height, width, 3], RGB, turned by its rotation.

    Colours are converted as FFmpeg does by default (the matrix of BT.601), which is also what decord gives.
    """
    import numpy as np

    return np.ascontiguousarray(np.rot90(picture.to_ndarray(format="rgb24"), _quarter_turns(picture)))


@contextmanager
def open_video(video_path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and its video stream. FFmpeg's errors inside the block become a `NarratorError`."""
    path = Path(video_path)
    _check_file(path)
    try:
        container = av.open(str(path), metadata_errors="replace")
    except FFmpegError as error:
        raise _not_readable(path, error) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            others = ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "nothing"
            raise NarratorError(f"{path} has no video stream (it holds {others}); give one with pictures")
        best = container.streams.best("video")
        stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
        if getattr(stream, "codec_context", None) is None:
            raise NarratorError(f"{path} is in a format PyAV cannot decode; convert it to H.264 in an mp4")
        try:
            yield container, stream
        except FFmpegError as error:
            raise NarratorError(
                f"{path} is damaged or cut off: {error.strerror or error}; {_AGAIN}"
            ) from error


_AGAIN = "copy, download or export it again"


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise NarratorError(f"{path} is a folder, not a video file; {_videos_in(path)}")
    if not path.exists():
        raise NarratorError(f"there is no video {path}; {_videos_in(path.parent)}")
    if path.stat().st_size == 0:
        raise NarratorError(f"{path} is empty (0 bytes); {_AGAIN}")


def _videos_in(folder: Path) -> str:
    """What a folder holds, and what to type, as the end of a message."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in VIDEO_ENDINGS)
    except OSError:
        return f"there is no folder {folder}: give the path of a video file"
    if not names:
        return f"{folder} holds no video: give the path of a video file"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{folder} holds {', '.join(names[:5])}{more}: give the path of one of them"


def _not_readable(path: Path, error: FFmpegError) -> NarratorError:
    if isinstance(error, PermissionError):
        return NarratorError(f"{path} may not be read: {error.strerror}; change its permissions")
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] == b"ftyp":
        return _cut_off(path, "its index is missing or incomplete")
    return NarratorError(f"{path} is not a video file ({error.strerror}); give an mp4, mov, mkv, webm or avi")


def _cut_off(path: Path, how: str) -> NarratorError:
    return NarratorError(f"{path} was cut off: {how}; {_AGAIN}")


def _time(packet: av.Packet) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts


def _fraction(ratio: Any) -> Fraction:
    return Fraction(ratio.numerator, ratio.denominator)


def _has_8_bits(picture: av.VideoFrame) -> bool:
    return all(component.bits == 8 for component in picture.format.components)


def _quarter_turns(picture: av.VideoFrame) -> int:
    return round(picture.rotation / 90) % 4
