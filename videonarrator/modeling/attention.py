"""Which token of a packed sequence attends to which, for the two forms of attention that take such a mask.

A packed sequence (see `videonarrator.packing`) is told by four numbers a token, `tree` [4, tokens]: the
number of its video; its branch (0: the trunk); how many tokens of its video's trunk it attends to; its
rotary position, which in a trunk is the place there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

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
