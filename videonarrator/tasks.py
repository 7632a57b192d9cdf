"""From a video's clips and frame features to what the narrator is asked to write, clip by clip."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from videonarrator.generation.jobs import ClipResult, ClipTask
from videonarrator.length import REFERENCE_MARGIN, count_units, range_for_duration, range_for_reference
from videonarrator.prompt import single_stops
from videonarrator.schema import Clip, NarratorError, Script, ScriptLine, Video
from videonarrator.speech import SpeakingRate, default_rate, fit_of, spoken_seconds
from videonarrator.storyline import SCRIPT_LABELS, check_label
from videonarrator.timeline import clip_positions, clip_positions_by_rank
from videonarrator.visual_memory import video_clip_tokens


def annotated_tasks(
    video: Video,
    frames: Sequence[Tensor],
    threshold: float | None,
    *,
    keys: Sequence[Tensor] | None = None,
    offered_label: bool = False,
    language: str = "zh",
    published: bool = False,
) -> list[ClipTask]:
    """Tasks for an annotated video, its visual tokens made of frame features; see `shown_tasks`.

    frames: of each annotated clip, its frames' features [frames, 32, width]; those of clips without text add
    nothing. threshold, keys: see `visual_memory.video_clip_tokens`.
    """
    told = [own if clip.text is not None else None for clip, own in zip(video.clips, frames, strict=True)]
    visual = video_clip_tokens(told, threshold, keys)
    return shown_tasks(video, visual, offered_label=offered_label, language=language, published=published)


def shown_tasks(
    video: Video,
    visual: Sequence[Tensor | None],
    *,
    offered_label: bool = False,
    language: str = "zh",
    published: bool = False,
) -> list[ClipTask]:
    """Tasks for an annotated video: clips with text and visual tokens, ranges around the references.

    visual: of each annotated clip, its visual tokens [tokens, width] or None. offered_label: the annotated
    labels are given, not generated. published: ranges and positions are the published lists' (a reference as
    it stands is counted, low may be less than 1; `timeline.clip_positions_by_rank`).
    """
    kept = [i for i, clip in enumerate(video.clips) if clip.text is not None and visual[i] is not None]
    texts = [video.clips[i].text or "" for i in kept]
    durations = [clip.duration for clip in video.clips]
    if published:
        margin, lengths = REFERENCE_MARGIN[language], [count_units(text, language) for text in texts]
        ranges = [(length - margin, length + margin) for length in lengths]
        positions = clip_positions_by_rank(durations, len(kept))
    else:
        ranges = [range_for_reference(single_stops(text), language) for text in texts]
        positions = clip_positions(durations, kept)
    labels = [video.clips[i].label if offered_label else None for i in kept]
    if "" in labels:
        raise NarratorError(
            f"video {video.id}, clip {kept[labels.index('')] + 1} has no label in the annotations to offer"
        )
    return _tasks(video.clips, kept, ranges, visual, positions, labels)


def new_tasks(
    clips: Sequence[Clip],
    frames: Sequence[Tensor],
    threshold: float | None,
    *,
    keys: Sequence[Tensor] | None = None,
    storyline: Sequence[str] | None = None,
    known: Sequence[str] = SCRIPT_LABELS,
    rate: SpeakingRate | None = None,
    language: str = "zh",
) -> list[ClipTask]:
    """Tasks for a new video: every clip, length ranges from its duration.

    threshold, keys: see `visual_memory.video_clip_tokens`.
    storyline: the script labels, one a clip; without it a clip's own label is taken, or one is generated.
    known: the labels there are.
    rate: by which the narrations are spoken (None: the language's default).
    """
    if storyline is not None and len(storyline) != len(clips):
        raise NarratorError(
            f"the storyline has {len(storyline)} labels, the video {len(clips)} clips: give one label a clip"
        )
    if empty := [number for number, shown in enumerate(frames, 1) if not len(shown)]:
        raise NarratorError(
            f"clip {empty[0]}: no frame of the video belongs to it, so there is nothing to see"
        )
    given = storyline or [clip.label for clip in clips]
    labels = [check_label(label, known) if label else None for label in given]
    units = (rate or default_rate(language)).units_per_second
    ranges = [range_for_duration(clip.duration, units, language) for clip in clips]
    kept = range(len(clips))
    positions = clip_positions([clip.duration for clip in clips], kept)
    return _tasks(clips, kept, ranges, video_clip_tokens(frames, threshold, keys), positions, labels)


def _tasks(
    clips: Sequence[Clip],
    kept: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    visual: Sequence[Tensor | None],
    positions: Sequence[int],
    labels: Sequence[str | None],
) -> list[ClipTask]:
    """clips, visual: of all clips; the others: of the kept ones."""
    tasks = []
    for index, (low, high), position, label in zip(kept, ranges, positions, labels, strict=True):
        tokens = visual[index]
        assert tokens is not None
        tasks.append(ClipTask(index, low, high, tokens, position, label, clips[index].duration))
    return tasks


def script_of(
    video: Video,
    tasks: Sequence[ClipTask],
    results: Sequence[ClipResult],
    language: str = "zh",
    rate: SpeakingRate | None = None,
) -> Script:
    """What was written, beside what was asked for; clips without a line are named with the reason.

    rate: by which the narrations are spoken (None: the language's default).
    """
    rate = rate or default_rate(language)
    asked = {task.index: task for task in tasks}
    lines = []
    for result in results:
        clip, task = video.clips[result.index], asked[result.index]
        written = count_units(result.text, language)
        line = (result.index, clip.start, clip.end, result.label, result.text, task.low, task.high, written)
        seconds = round(spoken_seconds(result.text, rate), 2)
        lines.append(ScriptLine(*line, result.flaws, seconds, fit_of(seconds, clip.duration)))
    done = {line.clip for line in lines}
    skipped = {
        index: "no frames, or no reference narration"
        if index not in asked
        else "over the limit of clips a video"
        for index in range(len(video.clips))
        if index not in done
    }
    return Script(video.id, video.product, tuple(lines), skipped)
