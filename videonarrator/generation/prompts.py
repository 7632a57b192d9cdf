"""What the model reads before a line is written, in a form in which two prompts can be compared.

A video's prompts share most of their text. Each token has a key: its id or, of a visual token, a number that
no other visual token of the video has. As far as the keys of two prompts agree, their keys and values do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from videonarrator.checkpoint import Checkpoint
from videonarrator.clip_inputs import encode, encode_text, generation_inputs
from videonarrator.generation.jobs import ClipTask
from videonarrator.prompt import Segment, StoryClip
from videonarrator.schema import NarratorError, Product

PATCHES = 1 << 20
"""More visual tokens than a clip has: a visual token's key is made of its clip's number and its own."""


@dataclass(frozen=True)
class Prompt:
    """Ids and keys [tokens], the visual tokens [patches, width] of its patches, the position of each."""

    ids: list[int]
    keys: list[int]
    visual: Tensor
    positions: list[int]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Of how many keys at their beginning two sequences agree."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def context_length(checkpoint: Checkpoint) -> int:
    """Tokens that the language model takes at most; 0: not known."""
    return int(getattr(checkpoint.narrator.base.config, "max_position_embeddings", 0) or 0)


def clip_prompt(
    checkpoint: Checkpoint,
    product: Product,
    history: Sequence[StoryClip],
    shown: Sequence[Tensor],
    clip: StoryClip,
    task: ClipTask,
    total: int,
    label: str | None,
) -> Prompt:
    """What the model reads up to where `clip`'s label is written or, once that is known, the narration.

    shown: of checkpoints of whole videos, the visual tokens of the clips of `history` and of this one; else
    empty.
    """
    template, info = checkpoint.template, checkpoint.info
    visual = torch.cat(list(shown)) if shown else task.visual
    inputs = generation_inputs(
        product, history, clip, total, visual, task.position, template, all_slots=bool(shown)
    )
    segments = list(inputs.segments)
    if label is not None:
        segments += [Segment(label + "\n")] if template.label else []
        segments.append(Segment(template.narration.format(i=clip.number)))
    if info.published:  # two blanks in a row become one, at inference only
        segments = [replace(segment, text=segment.text.replace("  ", " ")) for segment in segments]
    ids, _ = encode(segments, checkpoint.tokenizer, inputs.counts, info.token_rules)
    numbers = [one.number for one in history] if shown else []
    slots = zip([*numbers, clip.number], inputs.counts, strict=True)
    marks = iter([-1 - number * PATCHES - own for number, count in slots for own in range(count)])
    patch = checkpoint.narrator.patch_id
    keys = [next(marks) if token == patch else token for token in ids]
    places = zip(inputs.positions, inputs.counts, strict=True)
    return Prompt(ids, keys, inputs.visual, [place for place, count in places for _ in range(count)])


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
