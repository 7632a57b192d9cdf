"""Narration: label first, then the narration, clip by clip (paper, section 4.3).

Each clip is written from the instruction, the product, and the text of the clips before it as they were
generated; only the clip in work shows its visual tokens. A generated label or narration enters later prompts
as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videonarrator.checkpoint import Checkpoint
from videonarrator.clip_inputs import check_visual, encode, encode_text, generation_inputs
from videonarrator.decoding import write_line
from videonarrator.length import count_units, length_gap
from videonarrator.prompt import Segment, StoryClip, with_answer
from videonarrator.schema import NarratorError, Product
from videonarrator.settings import DecodingSettings


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
    seed = settings.seed if seed is None else seed
    history: list[StoryClip] = []
    results = []
    for task in tasks:
        check_visual(task.visual, checkpoint.info.feature_width, f"clip {task.index + 1}")
    for task in tasks[: settings.max_clips]:
        clip = StoryClip(task.index + 1, "", "", task.low, task.high)
        label = task.label
        if label is None:
            label = _write_label(checkpoint, product, history, clip, total, task, settings, seed)
        result = _write_narration(checkpoint, product, history, clip, total, task, label, settings, seed)
        results.append(result)
        history.append(with_answer(clip, result.label, result.text))
    return results


def _write_label(
    checkpoint: Checkpoint,
    product: Product,
    history: Sequence[StoryClip],
    clip: StoryClip,
    total: int,
    task: ClipTask,
    settings: DecodingSettings,
    seed: int,
) -> str:
    if not checkpoint.template.label:
        return ""
    ids = _prompt_ids(checkpoint, product, history, clip, total, task, None)
    text = _decode(
        checkpoint, ids, task, settings, settings.label_penalty, _draw(settings, 0), [seed, task.index, 0]
    )
    return text.split("\n")[0].strip()


def _write_narration(
    checkpoint: Checkpoint,
    product: Product,
    history: Sequence[StoryClip],
    clip: StoryClip,
    total: int,
    task: ClipTask,
    label: str,
    settings: DecodingSettings,
    seed: int,
) -> ClipResult:
    """The first narration inside the length range, or of all attempts the nearest (an empty one last)."""
    ids = _prompt_ids(checkpoint, product, history, clip, total, task, label)
    best: ClipResult | None = None
    best_gap = (True, 0)
    for attempt in range(settings.attempts):
        temperature = _draw(settings, attempt)
        parts = [seed, task.index, 1 + attempt]
        raw = _decode(checkpoint, ids, task, settings, settings.narration_penalty, temperature, parts)
        whole = raw.strip()
        language = checkpoint.template.language
        for text in [whole, *(clause_ends(whole, language) if settings.attempts > 1 else ())]:
            length = count_units(text, language)
            gap = (not text, length_gap(length, task.low, task.high))
            if best is None or gap < best_gap:
                best, best_gap = ClipResult(task.index, label, text, raw, attempt, seed), gap
            if gap == (False, 0):
                break
        if best_gap == (False, 0):
            break
    assert best is not None
    return best


def clause_ends(text: str, language: str = "zh") -> list[str]:
    """`text` ended after each of its clauses but the last, the longest first; words stay whole."""
    ends = [match.start() for match in re.finditer(r"[，；。！？](?=.)|[,;.!?](?= )", text)]
    return [text[:end] + ("." if language == "en" else "。") for end in reversed(ends) if end]


def _prompt_ids(
    checkpoint: Checkpoint,
    product: Product,
    history: Sequence[StoryClip],
    clip: StoryClip,
    total: int,
    task: ClipTask,
    label: str | None,
) -> list[int]:
    """Ids up to where the label is written or, once it is known, up to where the narration is."""
    template, info = checkpoint.template, checkpoint.info
    inputs = generation_inputs(product, history, clip, total, task.visual, task.position, template)
    segments = list(inputs.segments)
    if label is not None:
        segments += [Segment(label + "\n")] if template.label else []
        segments.append(Segment(template.narration.format(i=clip.number)))
    ids, _ = encode(
        segments,
        checkpoint.tokenizer,
        len(task.visual),
        bos=info.bos,
        strip_around_added_tokens=info.strip_around_added_tokens,
    )
    limit = int(getattr(checkpoint.narrator.base.config, "max_position_embeddings", 0) or 0)
    if limit and len(ids) >= limit:
        raise NarratorError(
            f"clip {clip.number}: the prompt has {len(ids)} tokens, the model takes {limit}: shorten the "
            "product facts or the clips"
        )
    return ids


def _decode(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    task: ClipTask,
    settings: DecodingSettings,
    penalty: float,
    temperature: float,
    seed_parts: Sequence[int],
) -> str:
    generator = torch.Generator().manual_seed(_mix(seed_parts))
    written = write_line(
        checkpoint.narrator,
        ids,
        task.visual,
        task.position,
        stop_ids(checkpoint.tokenizer),
        temperature=temperature,
        penalty=penalty,
        max_new_tokens=settings.max_new_tokens,
        generator=generator,
    )
    return checkpoint.tokenizer.decode(written, skip_special_tokens=True)


def stop_ids(tokenizer: Any) -> list[int]:
    """Ids that end a line: the line break's own piece, and the end of text."""
    newline = encode_text("\n", tokenizer)
    if len(newline) != 1:
        raise NarratorError(f"the tokenizer has no piece of its own for the line break (it gives {newline})")
    as_byte = tokenizer.convert_tokens_to_ids("<0x0A>")  # would break the line as well
    others = (tokenizer.eos_token_id, None if as_byte == tokenizer.unk_token_id else as_byte)
    return [*newline, *(token for token in others if token is not None)]


def _draw(settings: DecodingSettings, attempt: int) -> float:
    """Temperature of an attempt; 0 is greedy."""
    if attempt:
        return settings.retry_temperature
    return 0.0 if settings.greedy else settings.temperature


def _mix(parts: Sequence[int]) -> int:
    """One seed from several numbers, so that a clip's draw depends on nothing but them."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 12_345) % (2**63)
    return mixed
