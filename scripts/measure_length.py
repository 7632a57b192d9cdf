"""Measures whether narrations are as long as asked, whole, and still likely: on the held-out sample videos
and, with --products, on real products that the sample model knows nothing of.

Each clip is written by itself, behind the annotated story before it, so that all modes go on from one text:
  prompt       length and label are only asked for, as published
  constrained  the default
  best_of      the best of several, each constrained
Of --products (a sample list), one clip of each of the first --number videos is asked for, with its product
facts, story so far and length range, beside the visual tokens of a sample clip in turn (features do not come
with the list).

  in_range, labels_valid, closed  shares of narrations with a length in range, with a label made of script
      labels, with a closing mark at the end
  inside_word  share that ends within a word: the narration, without a mark that was added, is put behind its
      prompt, the model goes on without constraint up to the line's end or --further tokens, and jieba
      segments both together
  flaws        how many of each kind
  lines        narrations written per clip, candidates and further attempts included
  perplexity   exp of the mean negative log-likelihood of a token, line ends included: the texts as written,
      tokenised anew behind their prompts. Where the free label is another than the constrained one, the text
      of `prompt` is written behind the latter, too.
  perplexity_ratio, cpu_seconds  to that of `prompt`; of the writing alone

    python scripts/measure_length.py --checkpoint runs/sample/train/checkpoint --features runs/sample/features
      [--products test.json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from benchmarks.narrate_lines import Given

from data_process.annotations import read_annotations, read_sample_list, read_split
from data_process.feature_store import FeatureStore
from videonarrator.checkpoint import Checkpoint, load_checkpoint
from videonarrator.clip_inputs import encode_text
from videonarrator.generation.endings import ends_closed
from videonarrator.generation.engine import Engine
from videonarrator.generation.guides import UpToStop
from videonarrator.generation.jobs import ClipResult, ClipTask, VideoTask
from videonarrator.generation.line import Line
from videonarrator.generation.prompts import Prompt, clip_prompt, context_length
from videonarrator.generation.story import Lines, Story, Writing
from videonarrator.length import count_units
from videonarrator.prompt import Story as Told
from videonarrator.prompt import StoryClip, story_of
from videonarrator.schema import NarratorError, Video
from videonarrator.settings import DecodingSettings, as_published
from videonarrator.storyline import SCRIPT_LABELS
from videonarrator.tasks import annotated_tasks

MODES = {
    "prompt": as_published(DecodingSettings()),
    "constrained": DecodingSettings(),
    "best_of": DecodingSettings(length="best_of"),
}
ROOM = 1000
"""Tokens of the context that are left for what is written, so that all modes are told the same story."""


@dataclass(frozen=True)
class Asked:
    """One clip of a video as the only one to be written, behind the annotated clips before it."""

    video: VideoTask
    history: tuple[StoryClip, ...]

    @property
    def task(self) -> ClipTask:
        return self.video.clips[0]

    def prompt(self, checkpoint: Checkpoint, label: str | None) -> Prompt:
        """What the model reads before the label (None) or, behind it, the narration."""
        video, task = self.video, self.task
        clip = StoryClip(task.index + 1, "", "", task.low, task.high)
        return clip_prompt(checkpoint, video.product, self.history, (), clip, task, video.total, label)


@dataclass(frozen=True)
class Written:
    """lines: narrations written for it; likelihoods: of its tokens; further: how the model goes on."""

    result: ClipResult
    lines: int
    likelihoods: tuple[float, ...] = ()
    further: str = ""


def asked_of(checkpoint: Checkpoint, told: Told, at: int, task: ClipTask, name: str) -> Asked:
    """Clip `at` (place among the clips told of) with visual tokens and position of `task`."""
    clip = told.clips[at]
    shown = replace(task, index=clip.number - 1, low=clip.low, high=clip.high, label=None)
    video = VideoTask(f"{name} {clip.number}", told.product, [shown], told.total)
    asked = Asked(video, told.clips[:at])
    longest = context_length(checkpoint)
    while longest and asked.history and len(asked.prompt(checkpoint, "").ids) + ROOM > longest:
        asked = Asked(video, asked.history[1:])
    return asked


def of_samples(checkpoint: Checkpoint, videos: Sequence[Video], store: FeatureStore) -> list[Asked]:
    """Every clip of annotated videos."""
    found = []
    for video in videos:
        frames = [store.frames_of(video.id, clip.start, clip.end) for clip in video.clips]
        tasks = annotated_tasks(video, frames, checkpoint.info.features["threshold"])
        kept = [task.index for task in tasks]
        told = story_of(video, kept, [(task.low, task.high) for task in tasks])
        found += [asked_of(checkpoint, told, at, task, video.id) for at, task in enumerate(tasks)]
    return found


def of_products(checkpoint: Checkpoint, file: Path, number: int, shown: Sequence[Asked]) -> list[Asked]:
    """One clip of each of the first `number` videos of a sample list, with what `shown` show in turn."""
    found = []
    for place, video in enumerate(read_sample_list(file, checkpoint.template)[:number]):
        at, task = place % len(video.story.clips), shown[place % len(shown)].task
        duration = video.video.clips[video.story.clips[at].number - 1].duration
        task = replace(task, seconds=duration if video.timed else None)
        found.append(asked_of(checkpoint, video.story, at, task, video.video.id))
    return found


class BehindAnnotation(Writing):
    """Lines of one clip behind its annotated history; `lines_of` counts the narrations written of each."""

    def __init__(self, checkpoint: Checkpoint, settings: DecodingSettings, asked: Sequence[Asked]) -> None:
        super().__init__(checkpoint, settings)
        self.asked = {one.video.id: one for one in asked}
        self.lines_of: Counter[str] = Counter()

    def lines(self, video: VideoTask) -> Lines:
        """See `Writing`."""
        story = Story(self, video)
        story.history = list(self.asked[video.id].history)
        story.written = [clip.text for clip in story.history]
        lines = story.lines()
        labels = 0 if video.clips[0].label is not None or not self.template.label else 1
        while True:
            try:
                line = next(lines)
            except StopIteration as done:
                self.lines_of[video.id] -= labels
                return done.value
            self.lines_of[video.id] += 1
            yield line


class Judging(Writing):
    """Reads every text of a clip behind its prompt: how likely it is, and how the model would go on."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        asked: Sequence[Asked],
        modes: Sequence[dict[str, Written]],
        further: int,
    ) -> None:
        super().__init__(checkpoint, DecodingSettings())
        self.modes, self.further = modes, further
        self.asked = {one.video.id: one for one in asked}

    def lines(self, video: VideoTask) -> Lines:
        """See `Writing`."""
        name, tokenizer = video.id, self.tokenizer
        for written in self.modes:
            result = written[name].result
            prompt = self.asked[name].prompt(self.checkpoint, result.label)
            dictated = self._line(prompt, Given(self._ids(result.text), self.stops), 1.0)
            yield dictated
            ids = self._ids(without_added_mark(result))
            behind = replace(prompt, ids=[*prompt.ids, *ids], keys=[*prompt.keys, *ids])
            free = self._line(behind, UpToStop(self.further), self.settings.narration_penalty)
            yield free
            whole = tokenizer.decode([*ids, *free.written], skip_special_tokens=True)
            start = len(tokenizer.decode(ids, skip_special_tokens=True))
            likelihoods = tuple(dictated.own)
            written[name] = replace(written[name], likelihoods=likelihoods, further=whole[start:])
        return []

    def _ids(self, text: str) -> list[int]:
        return encode_text(self.template.blank + text, self.tokenizer) if text else []

    def _line(self, prompt: Prompt, guide: Any, penalty: float) -> Line:
        return Line(prompt, guide, self.stops, 0.0, penalty, torch.Generator())


def without_added_mark(result: ClipResult) -> str:
    """The narration without the closing mark that the model did not write itself."""
    own = result.raw.strip().startswith(result.text)
    return result.text if own else result.text[:-1]


def ends_inside_word(text: str, further: str, language: str) -> bool:
    """Whether a word reaches from `text` into what the model goes on with."""
    if language == "en":
        return text[-1:].isalnum() and further[:1].isalnum()
    import jieba

    return bool(text) and len(text) not in accumulate(map(len, jieba.lcut(text + further)))


def valid_label(label: str) -> bool:
    """Whether a label is made of distinct script labels."""
    parts = label.split("+")
    return len(set(parts)) == len(parts) and set(parts) <= set(SCRIPT_LABELS)


def write(
    checkpoint: Checkpoint, asked: Sequence[Asked], settings: DecodingSettings, labels: Mapping[str, str]
) -> dict[str, Written]:
    """What is written of each clip; labels: given ones, by the clip's name."""
    videos = [replace(one.video, clips=[replace(one.task, label=labels.get(one.video.id))]) for one in asked]
    writing = BehindAnnotation(checkpoint, settings, asked)
    engine = Engine(writing)
    written = {}
    for name, results in engine.run(videos):
        if isinstance(results, NarratorError):
            raise results
        written[name] = Written(results[0], writing.lines_of[name])
    return written


def measure(
    checkpoint: Checkpoint,
    asked: Sequence[Asked],
    modes: Mapping[str, DecodingSettings] = MODES,
    further: int = 20,
) -> tuple[dict[str, Any], dict[str, dict[str, Written]]]:
    """Numbers of each mode, and what was written: mode -> name of the clip -> text."""
    by_mode, seconds, free_labels = {}, {}, {}
    for mode, settings in modes.items():
        start = time.process_time()
        by_mode[mode] = write(checkpoint, asked, settings, {})
        seconds[mode] = time.process_time() - start
        free_labels[mode] = {name: one.result.label for name, one in by_mode[mode].items()}
    if {"prompt", "constrained"} <= set(modes):
        wanted, own = free_labels["constrained"], free_labels["prompt"]
        others = [one for one in asked if wanted[one.video.id] != own[one.video.id]]
        by_mode["prompt"] |= write(checkpoint, others, modes["prompt"], wanted)
    judge = Engine(Judging(checkpoint, asked, list(by_mode.values()), further))
    for _, results in judge.run(one.video for one in asked):
        if isinstance(results, NarratorError):
            raise results
    numbers = {
        mode: _numbers(checkpoint, asked, written, free_labels[mode])
        | {"cpu_seconds": round(seconds[mode], 1)}
        for mode, written in by_mode.items()
    }
    if "prompt" in numbers:
        for of_mode in numbers.values():
            of_mode["perplexity_ratio"] = of_mode["perplexity"] / numbers["prompt"]["perplexity"]
    return numbers, by_mode


def _numbers(
    checkpoint: Checkpoint, asked: Sequence[Asked], written: Mapping[str, Written], labels: Mapping[str, str]
) -> dict[str, Any]:
    language = checkpoint.template.language

    def share(found: Iterable[float]) -> float:
        return sum(found) / len(asked)

    texts = {name: one.result.text for name, one in written.items()}
    inside = (
        ends_inside_word(without_added_mark(one.result), one.further, language) for one in written.values()
    )
    likelihoods = [value for one in written.values() for value in one.likelihoods]
    return {
        "narrations": len(asked),
        "in_range": share(
            one.task.low <= count_units(texts[one.video.id], language) <= one.task.high for one in asked
        ),
        "labels_valid": share(map(valid_label, labels.values())),
        "closed": share(ends_closed(text, language) for text in texts.values()),
        "inside_word": share(inside),
        "flaws": dict(Counter(flaw for one in written.values() for flaw in one.result.flaws)),
        "lines": share(one.lines for one in written.values()),
        "perplexity": math.exp(-sum(likelihoods) / len(likelihoods)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--backbone", help="the frozen language model, where it has moved")
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--ids", type=Path, help="videos to measure on (default: the held-out ones)")
    parser.add_argument("--products", type=Path, help="a sample list with real products")
    parser.add_argument("--number", type=int, default=200, help="videos of --products")
    parser.add_argument("--modes", default=",".join(MODES), help="separated by commas (default: %(default)s)")
    parser.add_argument("--further", type=int, default=20, help="tokens (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and every narration")
    options = parser.parse_args()
    annotated = read_annotations(options.data / "annotations.json")
    videos = [annotated[v] for v in read_split(options.ids or options.data / "test_ids.txt", annotated)]
    checkpoint = load_checkpoint(options.checkpoint, backbone=options.backbone)
    modes = {mode: MODES[mode] for mode in options.modes.split(",")}
    sets = {"samples": of_samples(checkpoint, videos, FeatureStore.open(options.features))}
    if options.products:
        sets["products"] = of_products(checkpoint, options.products, options.number, sets["samples"])
    results, narrations = {}, {}
    for name, asked in sets.items():
        results[name], written = measure(checkpoint, asked, modes, options.further)
        print(f"{name} measured", file=sys.stderr)
        narrations[name] = [
            {"clip": one.video.id, "low": one.task.low, "high": one.task.high}
            | {
                mode: [result.label, result.text, result.raw]
                for mode, by in written.items()
                for result in [by[one.video.id].result]
            }
            for one in asked
        ]
    if options.out:
        everything = {**results, "written": narrations}
        options.out.write_text(json.dumps(everything, ensure_ascii=False, indent=1), "utf-8")
    print(json.dumps(results, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    try:
        main()
    except NarratorError as error:
        sys.exit(f"error: {error}")
