"""A video's lines in their order: label, then narration, clip by clip (paper, section 4.3).

Each clip is written from the instruction, the product, and the text of the clips before it as they were
generated; only the clip in work shows its visual tokens. A generated label or narration enters later prompts
as text.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from videonarrator.checkpoint import Checkpoint
from videonarrator.clip_inputs import check_visual
from videonarrator.generation.flaws import flaws_of
from videonarrator.generation.guides import OneOfLabels, UpToStop, Vocabulary, WithinLength, vocabulary_of
from videonarrator.generation.jobs import ClipResult, ClipTask, VideoTask
from videonarrator.generation.labels import LabelTrie
from videonarrator.generation.line import Guide, Line
from videonarrator.generation.prompts import Prompt, clip_prompt, context_length, stop_ids
from videonarrator.length import count_units, length_gap
from videonarrator.prompt import StoryClip, published_wording, with_answer
from videonarrator.schema import NarratorError, Product
from videonarrator.settings import DecodingSettings
from videonarrator.speech import FIT_LIMITS, SpeakingRate, default_rate, spoken_seconds
from videonarrator.storyline import SCRIPT_LABELS
from videonarrator.visual_memory import fit_tokens

log = logging.getLogger(__name__)

Lines = Generator[Line, None, list[ClipResult]]
"""Lines to be written, one at a time, and at the end what came of them."""


class Writing:
    """What all videos have in common: model, settings, and what these make of the vocabulary."""

    def __init__(
        self, checkpoint: Checkpoint, settings: DecodingSettings, rate: SpeakingRate | None = None
    ) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.rate = rate or default_rate(checkpoint.template.language)
        self.template, self.tokenizer = checkpoint.template, checkpoint.tokenizer
        self.stops = stop_ids(checkpoint.tokenizer, published=checkpoint.info.published)
        self.longest = context_length(checkpoint)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        narrator = self.checkpoint.narrator
        rows = narrator.base.get_output_embeddings().weight.shape[0]
        return vocabulary_of(self.tokenizer, self.stops, rows, self.template.language, narrator.device)

    @cached_property
    def labels(self) -> LabelTrie:
        return LabelTrie(tokenizer=self.tokenizer, labels=self.settings.labels or SCRIPT_LABELS)

    def label_guide(self) -> Guide:
        if self.settings.free_labels:
            return UpToStop(self.settings.max_new_tokens)
        return OneOfLabels(self.labels, self.stops)

    def narration_guide(self, task: ClipTask) -> Guide:
        if self.settings.length == "prompt":
            return UpToStop(self.settings.max_new_tokens)
        return WithinLength(task.low, task.high, self.template.language, self.tokenizer, self.vocabulary)

    def lines(self, video: VideoTask) -> Lines:
        """The lines of a video; `NarratorError` where its clips cannot be shown, or told of."""
        return Story(self, video).lines()


class Story:
    """What was written and shown of a video so far."""

    def __init__(self, writing: Writing, video: VideoTask) -> None:
        self.writing, self.video, self.settings = writing, video, writing.settings
        self.checkpoint = writing.checkpoint
        self.product = video.product
        if self.checkpoint.info.published:
            self.product = Product(*map(published_wording, (video.product.name, video.product.info)))
        self.seed = self.settings.seed if video.seed is None else video.seed
        self.history: list[StoryClip] = []
        self.shown: list[Tensor] = []  # of whole-video checkpoints: the visual tokens of all clips so far
        self.written: list[str] = []

    def lines(self) -> Lines:
        for task in self.video.clips:
            check_visual(task.visual, self.checkpoint.info.feature_width, f"clip {task.index + 1}")
        most = self.settings.max_clips
        results = []
        for task in self.video.clips if self.settings.windows else self.video.clips[:most]:
            if len(self.history) == most:
                self._forget(most - most // 4)
            results.append((yield from self._clip(task)))
        return results

    def _clip(self, task: ClipTask) -> Generator[Line, None, ClipResult]:
        clip = StoryClip(task.index + 1, "", "", task.low, task.high)
        if number := self.checkpoint.info.whole_video_tokens:
            self.shown.append(fit_tokens(task.visual, number))
        label = task.label
        if label is None:
            label = (yield from self._label(clip, task)) if self.writing.template.label else ""
        result = yield from self._narration(clip, task, label)
        if result.flaws:
            log.warning(
                "video %s, clip %d: its narration is flawed (%s)",
                self.video.id, clip.number, ", ".join(result.flaws),
            )  # fmt: skip
        self.history.append(with_answer(clip, result.label, result.text))
        self.written.append(result.text)
        return result

    def _label(self, clip: StoryClip, task: ClipTask) -> Generator[Line, None, str]:
        prompt = self._prompt(clip, task, None, self.settings.max_new_tokens)
        line = self._line(prompt, self.writing.label_guide(), self.settings.label_penalty, 0, (task.index, 0))
        yield line
        return self._decoded(line).split("\n")[0].strip()

    def _narration(self, clip: StoryClip, task: ClipTask, label: str) -> Generator[Line, None, ClipResult]:
        """The first candidates in order: as many as are to be compared; of all, the best.

        One that had to be cut where it would hardly end is compared with further attempts.
        """
        settings = self.settings
        wanted = settings.candidates if settings.length == "best_of" else 1
        tries = max(settings.attempts, wanted)
        candidates: list[ClipResult] = []
        good = 0
        for attempt in range(tries):
            guide = self.writing.narration_guide(task)
            room = guide.limit if isinstance(guide, UpToStop | WithinLength) else 0
            prompt = self._prompt(clip, task, label, room)
            draw = (task.index, 1 + attempt)
            line = self._line(prompt, guide, settings.narration_penalty, attempt, draw)
            yield line
            candidates.append(self._result(line, task, label, attempt))
            good += not candidates[-1].flaws and not (isinstance(guide, WithinLength) and guide.strained)
            if good >= wanted:
                break
        return min(candidates, key=lambda one: self._rank(one, task))

    def _result(self, line: Line, task: ClipTask, label: str, attempt: int) -> ClipResult:
        raw, language = self._decoded(line), self.writing.template.language
        score = None
        if isinstance(line.guide, WithinLength):
            text, score = line.guide.outcome(line)
        else:
            # tokenizers that join line breaks with other text have more tokens with one than the stop
            text = (raw if self.checkpoint.info.published else raw.split("\n")[0]).strip()
        flaws = flaws_of(text, language, self.written)
        if score is not None and length_gap(count_units(text, language), task.low, task.high):
            flaws = (*flaws, "length")
        return ClipResult(task.index, label, text, raw, attempt, self.seed, flaws, score)

    def _rank(self, result: ClipResult, task: ClipTask) -> tuple[Any, ...]:
        length = count_units(result.text, self.writing.template.language)
        gap = length_gap(length, task.low, task.high)
        cost = -(result.score or 0.0)
        if task.seconds and self.settings.length == "best_of":
            cost += overrun(result.text, task.seconds, self.writing.rate)
        return ("empty" in result.flaws, len(result.flaws), gap, cost)

    def _prompt(self, clip: StoryClip, task: ClipTask, label: str | None, room: int) -> Prompt:
        """The prompt with as much of the history as leaves `room` for what is to be written."""
        limit = self.writing.longest
        while True:
            prompt = clip_prompt(
                self.checkpoint, self.product, self.history, self.shown, clip, task, self.video.total, label
            )
            if not limit or len(prompt.ids) + room <= limit:
                return prompt
            if not self.history:
                break
            log.warning(
                "video %s, clip %d: the prompt is too long, clip %d is told of no more",
                self.video.id, clip.number, self.history[0].number,
            )  # fmt: skip
            self._forget(1)
        if len(prompt.ids) >= limit:
            raise NarratorError(
                f"clip {clip.number}: the prompt has {len(prompt.ids)} tokens, the model takes {limit}: "
                "shorten the product facts or the clips"
            )
        return prompt

    def _forget(self, clips: int) -> None:
        """Tell of the oldest clips no more."""
        del self.history[:clips], self.shown[:clips]

    def _line(
        self, prompt: Prompt, guide: Guide, penalty: float, attempt: int, draw: tuple[int, int]
    ) -> Line:
        """`draw` makes its random numbers its own."""
        settings = self.settings
        temperature = 0.0 if settings.greedy else settings.temperature
        return Line(
            prompt,
            guide,
            self.writing.stops,
            settings.retry_temperature if attempt else temperature,
            penalty,
            torch.Generator().manual_seed(mix((self.seed, *draw))),
        )

    def _decoded(self, line: Line) -> str:
        return self.writing.tokenizer.decode(line.written, skip_special_tokens=True)


def overrun(text: str, clip_seconds: float, rate: SpeakingRate) -> float:
    """By what share of the clip a text takes longer to say than is comfortable.

    As a cost beside a mean log-likelihood: speech that is a fifth of the clip too long outweighs a text that
    is less likely by 0.2 a token.
    """
    return max(0.0, spoken_seconds(text, rate) / clip_seconds - FIT_LIMITS["comfortable"])


def mix(parts: Sequence[int]) -> int:
    """One seed from several numbers, so that a clip's draw depends on nothing but them."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 12_345) % (2**63)
    return mixed
