"""Texts to fit a speaking rate on, and texts that are far from them."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def narrations(videos) -> list[tuple[str, float]]:
    """(narration, seconds of its clip) of each clip."""
    return [(clip.text, clip.duration) for video in videos for clip in video.clips if clip.text]


def spread(items: list, count: int) -> list:
    return [items[index * len(items) // count] for index in range(count)]


def chinese_texts(videos) -> tuple[list[str], list[str]]:
    """300 narrations of the first 200 videos to fit on, 100 of the others; half hold digits or Latin."""
    known = list(dict.fromkeys(text for text, _ in narrations(videos[:200])))
    unseen = list(dict.fromkeys(text for text, _ in narrations(videos[200:])))
    mixed = [text for text in unseen if re.search("[0-9A-Za-z]", text)]
    plain = [text for text in unseen if text not in mixed]
    return spread(known, 300), spread(mixed, 50) + spread(plain, 50)


def english_texts() -> tuple[list[str], list[str]]:
    """The sample data set's English narrations and 20 written for this to fit on, 100 others."""
    written = (Path(__file__).parent / "narrations_en.txt").read_text("utf-8").splitlines()
    sample = json.loads((ROOT / "data/sample/annotations_en.json").read_text("utf-8"))
    stories = dict.fromkeys(clip["new_text"] for video in sample.values() for clip in video["frames"])
    return [*stories, *written[::6]], [text for number, text in enumerate(written) if number % 6]
