"""Which token of a packed sequence attends to which, for the two forms of attention that take such a mask.

A packed sequence (see `videonarrator.packing`) is told by four numbers a token, `tree` [4, tokens]: the
number of its video; its branch (0: the trunk); how many tokens of its video's trunk it attends to; its
rotary position, which in a trunk is the place there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TREE_SDPA = "tree_sdpa"
"""transformers' name for `tree_attention` (see `register`)."""

Segments = list[tuple[int, int, list[tuple[int, int, int]]]]
"""Of each video in a packed sequence: where its trunk begins and ends, and of each branch where it begins and
ends and how many tokens of the trunk it attends to.
"""

TRUNK = 0
"""Number of the trunk among the branches of a sequence, which count from 1."""


def tree_mask(tree: Tensor) -> Tensor:
    """tree [4, tokens] -> [tokens, tokens] of bool: row attends to column."""
    at = torch.arange(tree.shape[1], device=tree.device)
    return _attends(tree, at[:, None], at[None])


def tree_block_mask(tree: Tensor) -> BlockMask:
    """The same rule as flex_attention takes it: blocks in which nothing is attended to are not computed."""
    length = tree.shape[1]

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _attends(tree, query, key)

    return create_block_mask(rule, None, None, length, length, device=str(tree.device))


def _attends(tree: Tensor, query: Any, key: Any) -> Tensor:
    videos, branches, limits, positions = tree
    own = (branches[query] == branches[key]) & (branches[query] != TRUNK) & (key <= query)
    trunk = (branches[key] == TRUNK) & (positions[key] < limits[query])
    return (videos[query] == videos[key]) & (own | trunk)


def tree_segments(tree: Tensor) -> Segments:
    """The videos and branches of a packed sequence, from its tree [4, tokens]."""
    videos, branches, limits, _ = tree.tolist()
    segments: Segments = []
    at = 0
    while at < len(videos):
        end = at
        while end < len(videos) and (videos[end], branches[end]) == (videos[at], branches[at]):
            end += 1
        if branches[at] == TRUNK:
            segments.append((at, end, []))
        else:
            if at == 0 or videos[at] != videos[at - 1]:  # a video without a trunk
                segments.append((at, at, []))
            segments[-1][2].append((at, end, limits[at]))
        at = end
    return segments


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """sdpa over a packed sequence, trunk by trunk and branch by branch: what is masked is not computed.

    query [1, heads, tokens, head_dim]; key and value may have fewer heads. Returns [1, tokens, heads,
    head_dim]. Without segments (padded samples) it is transformers' sdpa with the mask.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    made = []
    for begin, end, branches in segments:
        if end > begin:
            own = (one[:, :, begin:end] for one in (query, key, value))
            made.append(
                functional.scaled_dot_product_attention(
                    *own, dropout_p=dropout, scale=scaling, is_causal=True
                )
            )
        for first, last, limit in branches:
            keys, values = (
                torch.cat((one[:, :, begin : begin + limit], one[:, :, first:last]), 2)
                for one in (key, value)
            )
            length = last - first
            mask = torch.ones(length, limit + length, dtype=torch.bool, device=query.device).tril(limit)
            made.append(
                functional.scaled_dot_product_attention(
                    query[:, :, first:last], keys, values, mask, dropout_p=dropout, scale=scaling
                )
            )
    return torch.cat(made, 2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `tree_attention` known to transformers; padded samples get sdpa's mask."""
    AttentionInterface.register(TREE_SDPA, tree_attention)
    AttentionMaskInterface.register(TREE_SDPA, sdpa_mask)
