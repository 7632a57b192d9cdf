"""The language model with what it has read: rows that are extended, many in one forward pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from videonarrator.generation.captured import CapturedSteps
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.slots import SLOTS, SlotCache, SlotStep, register, single_mask

log = logging.getLogger(__name__)

CAPACITY_STEP = 256
"""Slots by which rows grow."""


@dataclass(frozen=True)
class Part:
    """A row is to hold `ids`; its first `kept` tokens it holds already, all behind is new (at least one).

    visual [patches, width] and positions: of all patches of `ids`.
    """

    row: int
    kept: int
    ids: Sequence[int]
    visual: Tensor
    positions: Sequence[int]


class SlotMemory:
    """Rows over a preallocated cache: nothing is computed twice, nothing padded.

    longest: no row will be longer than this (0: not known).
    """

    def __init__(self, narrator: Narrator, rows: int, *, longest: int = 0) -> None:
        register()
        narrator.base.set_attn_implementation(SLOTS)
        self.narrator, self.rows, self.longest = narrator, rows, longest
        self.cache = SlotCache(rows, 0)
        self.lengths = [0] * rows
        self.captured = CapturedSteps(narrator, self.cache) if narrator.device.type == "cuda" else None

    @torch.inference_mode()
    def extend(self, parts: Sequence[Part]) -> Tensor:
        """Read what is new of each part; logits [parts, vocabulary] of what follows it.

        At least float32; float64 where the model is. A row must not occur twice.
        """
        needed = 1 + max(len(part.ids) for part in parts)  # one slot is free behind the longest
        if needed > self.cache.capacity:
            wanted = max(needed, min(1.25 * needed, self.longest + 1 if self.longest else math.inf))
            self.cache.grow(math.ceil(wanted / CAPACITY_STEP) * CAPACITY_STEP)
            if self.captured:
                self.captured.forget()
        logits = None
        if self.captured and all(_new(part) == 1 for part in parts):
            tokens = [(part.row, part.ids[-1], part.kept) for part in parts]
            logits = self.captured(tokens, self.lengths)
        if logits is None:
            logits = self._extend(parts)
        for part in parts:
            self.lengths[part.row] = len(part.ids)
        return exact(logits)

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Let another row hold the first `length` tokens of a row."""
        self.cache.move(source, target, length)
        self.lengths[target] = length

    @torch.inference_mode()
    def clear(self, row: int) -> None:
        """Forget what a row holds."""
        self.cache.clear(row)

    def _extend(self, parts: Sequence[Part]) -> Tensor:
        device, narrator = self.narrator.device, self.narrator
        order = sorted(range(len(parts)), key=lambda one: (_new(parts[one]) > 1, parts[one].row))
        sorted_parts = [parts[one] for one in order]
        singles = [part for part in sorted_parts if _new(part) == 1]
        spans, at = [], len(singles)
        for part in sorted_parts[len(singles) :]:
            spans.append((part.row, at, at + _new(part), part.kept))
            at += _new(part)
        rows = 1 + max((part.row for part in singles), default=-1)
        single_rows = torch.tensor([part.row for part in singles], dtype=torch.long, device=device)
        single_slots = torch.tensor([part.kept for part in singles], dtype=torch.long, device=device)
        reach = 1 + max((part.kept for part in singles), default=-1)
        step = SlotStep(
            cache=self.cache,
            single_rows=single_rows,
            single_slots=single_slots,
            mask=single_mask(rows, reach, single_rows, single_slots),
            all_rows=rows == len(singles),
            spans=spans,
        )
        places = [slot for part in sorted_parts for slot in range(part.kept, len(part.ids))]
        hidden = narrator.base.model(
            inputs_embeds=_embeddings(narrator, sorted_parts),
            position_ids=torch.tensor([places], device=device),
            # any mask with four dimensions is taken as it is; slots have their own
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            slots=step,
        ).last_hidden_state[0]
        ends = [*range(len(singles)), *(end - 1 for _, _, end, _ in spans)]
        back = sorted(range(len(parts)), key=order.__getitem__)
        last = torch.tensor([ends[one] for one in back], device=device)
        return narrator.base.get_output_embeddings()(hidden[last])


class PlainMemory:
    """Rows with a cache of transformers each, one after the other: for models that slots do not suit.

    A row that is cut back is read anew.
    """

    def __init__(self, narrator: Narrator, rows: int) -> None:
        narrator.base.set_attn_implementation("sdpa")
        self.narrator, self.rows = narrator, rows
        self.caches: dict[int, tuple[Any, int]] = {}

    @torch.inference_mode()
    def extend(self, parts: Sequence[Part]) -> Tensor:
        """See `SlotMemory.extend`."""
        return torch.stack([self._extend(part) for part in parts])

    def move(self, source: int, target: int, length: int) -> None:
        """Let another row hold the first `length` tokens of a row."""
        self.caches.pop(target, None)
        if source in self.caches:  # else nothing of it was read yet
            self.caches[target] = self.caches.pop(source)

    def clear(self, row: int) -> None:
        """Forget what a row holds."""
        self.caches.pop(row, None)

    def _extend(self, part: Part) -> Tensor:
        cache, length = self.caches.get(part.row, (None, -1))
        if length != part.kept:
            cache = DynamicCache(config=self.narrator.base.config)
            part = Part(part.row, 0, part.ids, part.visual, part.positions)
        made = self.narrator.base.model(
            inputs_embeds=_embeddings(self.narrator, [part]), past_key_values=cache, use_cache=True
        )
        self.caches[part.row] = made.past_key_values, len(part.ids)
        return exact(self.narrator.base.get_output_embeddings()(made.last_hidden_state[0, -1]))


Memory = SlotMemory | PlainMemory


def exact(logits: Tensor) -> Tensor:
    """Logits in float32 where they are less."""
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.inference_mode()
def slots_hold(narrator: Narrator) -> bool:
    """Whether this language model's forward pass over slots gives what it gives without; tried on few tokens.

    It does not where attention ignores positions (ALiBi), or is not transformers' own.
    """
    vocabulary = narrator.base.get_input_embeddings().weight.shape[0]
    ids = [(7 * place + 1) % min(vocabulary, narrator.patch_id or vocabulary) for place in range(11)]
    nothing = torch.zeros(0, narrator.projector.position.embedding_dim, device=narrator.device)
    plain = PlainMemory(narrator, 1).extend([Part(0, 0, ids, nothing, [])])[0]
    try:
        memory = SlotMemory(narrator, 2)
        memory.captured = None
        memory.extend([Part(1, 0, ids[2:7], nothing, []), Part(0, 0, ids[:5], nothing, [])])
        memory.extend([Part(0, 5, ids[:6], nothing, []), Part(1, 5, ids[2:9], nothing, [])])
        memory.extend([Part(0, 6, ids[:10], nothing, [])])
        own = memory.extend([Part(0, 10, ids, nothing, [])])[0]
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        log.warning("this language model cannot write over slots (%s)", str(error).partition("\n")[0])
        return False
    scale = plain.abs().max().item()
    loose = narrator.base.dtype in (torch.bfloat16, torch.float16)
    return (own - plain).abs().max().item() <= (0.1 if loose else 1e-3) * scale


def memory_for(narrator: Narrator, rows: int, longest: int) -> Memory:
    """The fast memory where the language model allows it, else the plain one."""
    window = int(getattr(narrator.base.config, "sliding_window", None) or 0)
    if (window and window < (longest or window + 1)) or not slots_hold(narrator):
        log.warning("this language model's attention does not suit the cache: it writes slowly, row by row")
        return PlainMemory(narrator, rows)
    return SlotMemory(narrator, rows, longest=longest)


def slot_bytes(narrator: Narrator) -> int:
    """Bytes that a slot takes in all layers (an estimate from the configuration)."""
    config = narrator.base.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * narrator.base.dtype.itemsize


def _new(part: Part) -> int:
    return len(part.ids) - part.kept


def _embeddings(narrator: Narrator, parts: Sequence[Part]) -> Tensor:
    """[1, tokens, hidden] of what is new of all parts, one after the other."""
    ids = [token for part in parts for token in part.ids[part.kept :]]
    visual, positions = [], []
    for part in parts:
        before = list(part.ids[: part.kept]).count(narrator.patch_id)
        if before < len(part.visual):
            visual.append(part.visual[before:])
            positions += part.positions[before:]
    device = narrator.device
    shown = torch.cat(visual) if visual else parts[0].visual[:0]
    places = torch.tensor(positions, dtype=torch.long, device=device)
    return narrator.embed(torch.tensor([ids], device=device), shown.to(device), places)
