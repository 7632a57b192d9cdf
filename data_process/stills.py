"""Videos to pictures on disk: one still a second as JPEG, named as in sample lists and for the metrics."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from data_process.annotations import image_file
from data_process.frames import iter_frames, probe
from data_process.video_file import for_each_video
from videonarrator.schema import NarratorError

QUALITY = 95
"""Of the JPEG files."""


def save_stills(
    videos: Sequence[Path], out: Path, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, str]:
    """Frame k of each video to `out/<video id>/<video id>_<k in three digits>.jpg`; failed video -> reason.

    A video's folder appears when it is whole; one that is there and not older than its video is kept.
    """

    def save(path: Path) -> None:
        target = out / path.stem
        if not (target.is_dir() and path.is_file() and target.stat().st_mtime >= path.stat().st_mtime):
            _save(path, target)

    return for_each_video(videos, save, "stills", say)


def _save(path: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    numbers = range(1, probe(path).n_frames + 1)
    try:
        part.mkdir(parents=True, exist_ok=True)
        for number, still in iter_frames(path, numbers):
            Image.fromarray(still).save(part / image_file(path.stem, number), quality=QUALITY)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except OSError as error:
        raise NarratorError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
