"""The next token: repetition penalty, what is not allowed, and the likeliest or one drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def penalised(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """`logits` with those of `seen` ids divided by `penalty` where positive, multiplied where negative.

    logits and seen: [vocabulary], or [rows, vocabulary] with penalty [rows, 1].
    """
    weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, weaker, logits)


def draw(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    """An id drawn from the softmax of scores [vocabulary] at `temperature`, in float64.

    One random number of the CPU's generator is used, whatever the device.
    """
    chances = torch.softmax(scores.double() / temperature, dim=-1).cumsum(-1)
    place = torch.rand(1, dtype=torch.float64, generator=generator).to(scores.device) * chances[-1]
    last = int((chances < chances[-1]).sum())  # ids behind it have no chance
    return min(int(torch.searchsorted(chances, place, right=True)), last)


def log_shares(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability [rows, groups] that the next token is of each group; logits [rows, vocabulary]."""
    whole = logits.logsumexp(-1)
    shares = [logits[:, list(group)].logsumexp(-1) - whole for group in groups]
    return torch.stack(shares, dim=-1)
