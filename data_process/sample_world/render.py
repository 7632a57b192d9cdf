"""Renders the sample data set's videos from its scene descriptions: H.264 through PyAV, no ffmpeg program
needed.

The same scenes give the same pixels every time: what moves depends on the clip's progress, what jitters on a
seed made from the video's id. The file's bytes are no part of the promise: in a process that has done other
work, x264 was seen to end the first picture a byte or two later, with every pixel the same.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import av

from data_process.sample_world.drawing import HEIGHT, WIDTH, draw_scene
from data_process.sample_world.scenes import Scene
from videonarrator.schema import NarratorError, Video

FRAMES_A_SECOND = 10


def read_scenes(path: Path) -> dict[str, list[Scene]]:
    """Video id -> scenes, from scenes.json."""
    try:
        described: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return {name.removesuffix(".mp4"): [Scene(**s) for s in v["scenes"]] for name, v in described.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NarratorError(f"cannot read scene descriptions from {path}: {error}") from error


def read_named(path: Path) -> dict[str, list[dict[str, str]]]:
    """Video id -> for each clip, attribute -> value that its narration names first, from scenes.json."""
    described: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return {name.removesuffix(".mp4"): video["named"] for name, video in described.items()}


def render_video(video: Video, scenes: list[Scene], path: Path) -> None:
    """Render one video; the file appears only when it is whole."""
    if len(scenes) != len(video.clips):
        raise NarratorError(f"video {video.id}: {len(scenes)} scenes for {len(video.clips)} clips")
    partial = path.with_name(path.name + ".partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        stream.codec_context.thread_count = 1
        for number, (clip, scene) in enumerate(zip(video.clips, scenes, strict=True)):
            seed = zlib.crc32(f"{video.id}/{number}".encode())
            first, last = round(clip.start * FRAMES_A_SECOND), round(clip.end * FRAMES_A_SECOND)
            for frame in range(first, last):
                picture = draw_scene(scene, (frame - first) / max(1, last - first), seed)
                for packet in stream.encode(av.VideoFrame.from_image(picture)):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    os.replace(partial, path)


def render_all(
    videos: list[Video],
    scenes: dict[str, list[Scene]],
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    workers: int | None = None,
) -> list[Path]:
    """Render the videos that are not there yet into `folder`; returns all paths."""
    missing = [video.id for video in videos if video.id not in scenes]
    if missing:
        raise NarratorError(f"no scenes described for {', '.join(missing[:5])} ({len(missing)} videos)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NarratorError(f"cannot make {folder}: {error}") from error
    paths = {video.id: folder / f"{video.id}.mp4" for video in videos}
    waiting = [video for video in videos if not paths[video.id].is_file()]
    with ProcessPoolExecutor(workers or os.cpu_count() or 1) as pool:
        jobs = [pool.submit(render_video, video, scenes[video.id], paths[video.id]) for video in waiting]
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            if done % 10 == 0 or done == len(jobs):
                say(f"rendered {done}/{len(jobs)}")
    return list(paths.values())
