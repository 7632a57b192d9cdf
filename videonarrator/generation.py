"""Narration: label first, then the narration, clip by clip (paper, section 4.3).

Each clip is written from the instruction, the product, and the text of the clips before it as they were
generated; only the clip in work shows its visual tokens. A generated label or narration enters later prompts
as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from videonarrator.checkpoint import Checkpoint
from videonarrator.clip_inputs import check_visual, encode, encode_text, generation_inputs
from videonarrator.decoding import write_line
from videonarrator.length import count_units, length_gap
from videonarrator.prompt import Segment, StoryClip, published_wording, with_answer
from videonarrator.schema import NarratorError, Product
from videonarrator.settings import DecodingSettings
from videonarrator.visual_memory import fit_tokens


@dataclass(frozen=True)
class ClipTask:
    """A clip to be written: index from 0, length range, visual tokens [tokens, width], position 0..99.

    label: a script label given by the user; None has it generated.
    """

    index: int
    low: int
    high: int
    visual: Tensor
    position: int
    label: str | None = None


@dataclass(frozen=True)
class Prompt:
    """Ids, the visual tokens [patches, width] that its patches stand for, and the position of each."""

    ids: list[int]
    visual: Tensor
    positions: list[int]


@dataclass(frozen=True)
class ClipResult:
    """What was written for a clip. `raw`: the narration as decoded; `attempt`: its try, from 0."""

    index: int
    label: str
    text: str
    raw: str
    attempt: int
    seed: int


def narrate_video(
    checkpoint: Checkpoint,
    product: Product,
    tasks: Sequence[ClipTask],
    total: int,
    settings: DecodingSettings,
    seed: int | None = None,
) -> list[ClipResult]:
    """Write the clips of one video in order, at most `settings.max_clips`; `total` counts all its clips."""
    for task in tasks:
        check_visual(task.visual, checkpoint.info.feature_width, f"clip {task.index + 1}")
    writer = _Writer(checkpoint, product, total, settings, settings.seed if seed is None else seed)
    return [writer.write(task) for task in tasks[: settings.max_clips]]


class _Writer:
    """Writes one video's clips; keeps what was written and shown so far."""

    def __init__(
        self, checkpoint: Checkpoint, product: Product, total: int, settings: DecodingSettings, seed: int
    ) -> None:
        if checkpoint.info.published:
            product = Product(published_wording(product.name), published_wording(product.info))
        self.checkpoint, self.product, self.total = checkpoint, product, total
        self.settings, self.seed = settings, seed
        self.template = checkpoint.template
        self.stops = stop_ids(checkpoint.tokenizer, published=checkpoint.info.published)
        self.history: list[StoryClip] = []
        self.shown: list[Tensor] = []  # of whole-video checkpoints: the visual tokens of all clips so far

    def write(self, task: ClipTask) -> ClipResult:
        clip = StoryClip(task.index + 1, "", "", task.low, task.high)
        if number := self.checkpoint.info.whole_video_tokens:
            self.shown.append(fit_tokens(task.visual, number))
        label = task.label
        if label is None:
            label = self._label(clip, task) if self.template.label else ""
        result = self._narration(clip, task, label)
        self.history.append(with_answer(clip, result.label, result.text))
        return result

    def _label(self, clip: StoryClip, task: ClipTask) -> str:
        prompt = self._prompt(clip, task, None)
        text = self._decode(prompt, self.settings.label_penalty, 0, (task.index, 0))
        return text.split("\n")[0].strip()

    def _narration(self, clip: StoryClip, task: ClipTask, label: str) -> ClipResult:
        """The first narration inside the length range, or of all attempts the nearest (an empty one last)."""
        prompt = self._prompt(clip, task, label)
        best: ClipResult | None = None
        best_gap = (True, 0)
        for attempt in range(self.settings.attempts):
            raw = self._decode(prompt, self.settings.narration_penalty, attempt, (task.index, 1 + attempt))
            # tokenizers that join line breaks with other text have more tokens with one than the stop
            whole = (raw if self.checkpoint.info.published else raw.split("\n")[0]).strip()
            language = self.template.language
            for text in [whole, *(clause_ends(whole, language) if self.settings.attempts > 1 else ())]:
                length = count_units(text, language)
                gap = (not text, length_gap(length, task.low, task.high))
                if best is None or gap < best_gap:
                    best, best_gap = ClipResult(task.index, label, text, raw, attempt, self.seed), gap
                if gap == (False, 0):
                    break
            if best_gap == (False, 0):
                break
        assert best is not None
        return best

    def _prompt(self, clip: StoryClip, task: ClipTask, label: str | None) -> Prompt:
        """What the model reads up to where the label is written or, once that is known, the narration."""
        inputs = generation_inputs(
            self.product,
            self.history,
            clip,
            self.total,
            torch.cat(self.shown) if self.shown else task.visual,
            task.position,
            self.template,
            all_slots=bool(self.shown),
        )
        segments = list(inputs.segments)
        if label is not None:
            segments += [Segment(label + "\n")] if self.template.label else []
            segments.append(Segment(self.template.narration.format(i=clip.number)))
        info = self.checkpoint.info
        if info.published:  # two blanks in a row become one, at inference only
            segments = [replace(segment, text=segment.text.replace("  ", " ")) for segment in segments]
        ids, _ = encode(segments, self.checkpoint.tokenizer, inputs.counts, info.token_rules)
        limit = int(getattr(self.checkpoint.narrator.base.config, "max_position_embeddings", 0) or 0)
        if limit and len(ids) >= limit:
            raise NarratorError(
                f"clip {clip.number}: the prompt has {len(ids)} tokens, the model takes {limit}: shorten the "
                "product facts or the clips"
            )
        slots = zip(inputs.positions, inputs.counts, strict=True)
        return Prompt(ids, inputs.visual, [place for place, count in slots for _ in range(count)])

    def _decode(self, prompt: Prompt, penalty: float, attempt: int, draw: tuple[int, int]) -> str:
        """The line written after the prompt; `draw` makes its random numbers its own."""
        written = write_line(
            self.checkpoint.narrator,
            prompt.ids,
            prompt.visual,
            prompt.positions,
            self.stops,
            temperature=self._temperature(attempt),
            penalty=penalty,
            max_new_tokens=self.settings.max_new_tokens,
            generator=torch.Generator().manual_seed(_mix((self.seed, *draw))),
        )
        return self.checkpoint.tokenizer.decode(written, skip_special_tokens=True)

    def _temperature(self, attempt: int) -> float:
        """0 is greedy."""
        if attempt:
            return self.settings.retry_temperature
        return 0.0 if self.settings.greedy else self.settings.temperature


def clause_ends(text: str, language: str = "zh") -> list[str]:
    """`text` ended after each of its clauses but the last, the longest first; words stay whole."""
    ends = [match.start() for match in re.finditer(r"[，；。！？](?=.)|[,;.!?](?= )", text)]
    return [text[:end] + ("." if language == "en" else "。") for end in reversed(ends) if end]


def stop_ids(tokenizer: Any, *, published: bool = False) -> list[int]:
    """Ids that end a line: the line break's own piece, and the end of text (published: the former alone)."""
    newline = encode_text("\n", tokenizer)
    if len(newline) != 1:
        raise NarratorError(f"the tokenizer has no piece of its own for the line break (it gives {newline})")
    if published:
        return newline
    as_byte = tokenizer.convert_tokens_to_ids("<0x0A>")  # would break the line as well
    others = (tokenizer.eos_token_id, None if as_byte == tokenizer.unk_token_id else as_byte)
    return [*newline, *(token for token in others if token is not None)]


def _mix(parts: Sequence[int]) -> int:
    """One seed from several numbers, so that a clip's draw depends on nothing but them."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 12_345) % (2**63)
    return mixed
