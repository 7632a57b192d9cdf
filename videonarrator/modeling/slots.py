"""Keys and values of many sequences in one preallocated cache, and the attention over it.

Every sequence has a row; its token at position p lies in slot p. A forward pass takes new tokens of any rows,
one after the other as one sequence, so that nothing is padded: first the rows that get a single token, which
attend together, then those that get several (spans). A row is cut back by being told to go on from an earlier
slot: what lies behind is written over before anything attends to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SLOTS = "slots_sdpa"
"""transformers' name for `slot_attention` (see `register`)."""


class SlotCache:
    """Keys and values of each layer, [rows, heads, capacity, head dim], made when first written to."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer; key and value [1, heads, tokens, head dim] are of its kind."""
        if index not in self.layers:
            self.layers[index] = self._empty(key), self._empty(value)
        return self.layers[index]

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots a row, layer by layer, so that little is there twice."""
        old, self.capacity = self.capacity, capacity
        for index, pair in list(self.layers.items()):
            grown = tuple(self._empty(one) for one in pair)
            for new, one in zip(grown, pair, strict=True):
                new[:, :, :old] = one
            self.layers[index] = grown[0], grown[1]
            del pair

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row to another."""
        for pair in self.layers.values():
            for one in pair:
                one[target, :, :length] = one[source, :, :length]

    def clear(self, row: int) -> None:
        """Take out what a row holds (a number that is none would reach other rows past the mask)."""
        for pair in self.layers.values():
            for one in pair:
                one[row] = 0

    def _empty(self, like: Tensor) -> Tensor:
        # zeros: a slot that was never written to is masked, but must not be NaN
        return like.new_zeros(self.rows, like.shape[1], self.capacity, like.shape[3])


@dataclass(frozen=True)
class SlotStep:
    """Which rows the tokens of one forward pass belong to.

    The sequence begins with one token for each of `single_rows` [singles], at slots `single_slots`; then come
    `spans`: (row, first token, end, slot of the first). mask [rows, 1, 1, slots]: what each row's single
    token attends to. all_rows: every row of the mask has a single token, in order.
    """

    cache: SlotCache
    single_rows: Tensor
    single_slots: Tensor
    mask: Tensor
    all_rows: bool
    spans: Sequence[tuple[int, int, int, int]]

    @cached_property
    def span_masks(self) -> list[Tensor | None]:
        """Of each span [tokens, slots] of bool, as `mask`; None where it starts at its row's first slot."""
        masks: list[Tensor | None] = []
        for _, first, end, start in self.spans:
            whole = torch.ones(end - first, start + end - first, dtype=torch.bool, device=self.mask.device)
            masks.append(whole.tril(start) if start else None)
        return masks


def single_mask(rows: int, reach: int, single_rows: Tensor, single_slots: Tensor) -> Tensor:
    """[rows, 1, 1, reach] of bool: a row's token attends to all slots up to its own.

    Rows without a token attend to their first slot (to none would give NaN).
    """
    last = torch.zeros(rows, dtype=torch.long, device=single_slots.device)
    last = last.index_put((single_rows,), single_slots)
    return (torch.arange(reach, device=last.device) <= last[:, None])[:, None, None]


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: SlotStep | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """sdpa of new tokens over their rows of the cache, to which they are added first.

    query [1, heads, tokens, head dim]; key and value may have fewer heads. Returns [1, tokens, heads, head
    dim]. Without slots it is transformers' sdpa.
    """
    if slots is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    keys, values = slots.cache.layer(module.layer_idx, key, value)
    how: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    made = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    singles = len(slots.single_rows)
    if singles:
        keys[slots.single_rows, :, slots.single_slots] = key[0, :, :singles].transpose(0, 1)
        values[slots.single_rows, :, slots.single_slots] = value[0, :, :singles].transpose(0, 1)
        rows, reach = slots.mask.shape[0], slots.mask.shape[3]
        asking = query[0, :, :singles].transpose(0, 1).unsqueeze(2)  # [singles, heads, 1, head dim]
        if not slots.all_rows:
            asking = asking.new_zeros(rows, *asking.shape[1:]).index_put((slots.single_rows,), asking)
        mixed = functional.scaled_dot_product_attention(
            asking, keys[:rows, :, :reach], values[:rows, :, :reach], slots.mask, **how
        )[:, :, 0]
        made[:singles] = mixed if slots.all_rows else mixed[slots.single_rows]
    for (row, first, end, start), mask in zip(slots.spans, slots.span_masks, strict=True):
        length = end - first
        keys[row, :, start : start + length] = key[0, :, first:end]
        values[row, :, start : start + length] = value[0, :, first:end]
        seen = (keys[row, None, :, : start + length], values[row, None, :, : start + length])
        mixed = functional.scaled_dot_product_attention(
            query[:, :, first:end], *seen, mask, is_causal=not start, **how
        )
        made[first:end] = mixed[0].transpose(0, 1)
    return made[None], None


def register() -> None:
    """Make `slot_attention` known to transformers; whoever does not use slots gets sdpa's mask."""
    AttentionInterface.register(SLOTS, slot_attention)
    AttentionMaskInterface.register(SLOTS, sdpa_mask)
