"""What `benchmark.py narrate` has written: the videos, and lines whose tokens are known beforehand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.training_sides import TEMPLATE, read_tokenizer, read_videos

from data_process.annotations import SampleVideo, read_annotations
from data_process.prepare import video_story
from videonarrator.checkpoint import Checkpoint
from videonarrator.clip_inputs import encode_text
from videonarrator.dataset import VisualSource
from videonarrator.generation.guides import UpToStop
from videonarrator.generation.jobs import ClipTask, VideoTask
from videonarrator.generation.line import Guide, Line
from videonarrator.generation.prompts import common_length
from videonarrator.generation.story import Lines, Story, Writing
from videonarrator.settings import DecodingSettings, as_published
from videonarrator.timeline import clip_positions

SAMPLE = Path(__file__).resolve().parents[2] / "data/sample"
"""What is written where the reference data is not there."""

SETTINGS = as_published(DecodingSettings())


# -------------------- videos


def read_stories(data: Path | None) -> list[SampleVideo]:
    """The 300 real videos; without the reference data, those of the sample data set."""
    if data:
        return read_videos(data)
    videos = read_annotations(SAMPLE / "annotations.json").values()
    return [SampleVideo(one, video_story(one, range(len(one.clips)), TEMPLATE), True) for one in videos]


def tokenizer_of(data: Path | None, folder: str | None) -> Any:
    """The tokenizer in `folder`; None: the reference data's or, without it, the sample data set's."""
    return read_tokenizer(data or SAMPLE, folder or (None if data else str(SAMPLE / "models/backbone")))


def tasks_of(stories: Sequence[SampleVideo], features: VisualSource) -> list[VideoTask]:
    """The videos as they are to be written, labels included."""
    tasks = []
    for one in stories:
        kept = [clip.number - 1 for clip in one.story.clips]
        places = clip_positions([clip.duration for clip in one.video.clips], kept)
        clips = [
            ClipTask(index, clip.low, clip.high, features(one.video.id, index), place)
            for index, clip, place in zip(kept, one.story.clips, places, strict=True)
        ]
        tasks.append(VideoTask(one.video.id, one.story.product, clips, one.story.total))
    return tasks


# -------------------- lines that are given


class Given(Guide):
    """A line of these ids, ended by the first of `stops`."""

    def __init__(self, ids: Sequence[int], stops: Sequence[int]) -> None:
        self.ids = [*ids, stops[0]]
        self.judged = (tuple(stops),)

    def only(self, written: Sequence[int]) -> Sequence[int]:
        """See `Guide`."""
        return [self.ids[len(written)]]

    def done(self, written: Sequence[int]) -> bool:
        """See `Guide`."""
        return False


class Free(UpToStop):
    """Anything up to a stop, or so many tokens; likelihoods are noted."""

    def __init__(self, limit: int, stops: Sequence[int]) -> None:
        super().__init__(limit)
        self.judged = (tuple(stops),)


Guides = Callable[[str, Sequence[int]], Iterator[Guide]]
"""Of a video's id and the ids that end a line: the guides of its lines, in order."""


def given(stories: Sequence[SampleVideo], tokenizer: Any) -> Guides:
    """Every line is the reference's."""
    clips = {one.video.id: one.story.clips for one in stories}

    def guides(video: str, stops: Sequence[int]) -> Iterator[Guide]:
        for clip in clips[video]:
            for text in (clip.label, clip.text):
                yield Given(encode_text(text.strip(), tokenizer), stops)

    return guides


def free(limit: int) -> Guides:
    """The model chooses, up to `limit` tokens a line."""

    def guides(video: str, stops: Sequence[int]) -> Iterator[Guide]:
        while True:
            yield Free(limit, stops)

    return guides


class Prescribed(Writing):
    """Writing whose lines have these guides. kept: of each video, its lines so far."""

    def __init__(self, checkpoint: Checkpoint, guides: Guides, batch: int = 1) -> None:
        super().__init__(checkpoint, replace(SETTINGS, batch=batch))
        self.guides = guides
        self.kept: dict[str, list[Line]] = {}
        self.coming: Iterator[Guide] = iter(())

    def label_guide(self) -> Guide:
        return next(self.coming)

    def narration_guide(self, task: ClipTask) -> Guide:
        return next(self.coming)

    def lines(self, video: VideoTask) -> Lines:
        own = copy(self)
        own.coming = self.guides(video.id, self.stops)
        self.kept[video.id] = []
        lines = Story(own, video).lines()
        while True:
            try:
                line = next(lines)
            except StopIteration as done:
                return done.value
            self.kept[video.id].append(line)
            yield line


def prompt_tokens(writing: Prescribed, video: VideoTask) -> tuple[int, int, int]:
    """Tokens read of a video's prompts, upstream's way and from what a row holds; and tokens written.

    No model is run: its lines are given.
    """
    whole = new = written = 0
    held: list[int] = []
    for line in writing.lines(video):
        keys = line.prompt.keys
        whole += len(keys)
        new += len(keys) - min(common_length(held, keys), len(keys) - 1)
        while not line.take(*(line.guide.only(line.written) or ())):
            pass
        written += len(line.written)
        held = [*keys, *line.written]
    return whole, new, written


@contextmanager
def without_warnings() -> Iterator[None]:
    """What is written here is no narration: nobody wants to know its flaws."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
