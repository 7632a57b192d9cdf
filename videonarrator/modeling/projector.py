"""From visual tokens to the language model's width, the clip's position added (paper, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisualProjector(nn.Module):
    """One linear map for visual tokens and position vectors alike; its bias therefore enters twice.

    positions: size of the table of learned relative positions (0..99 in the paper), as wide as a feature.
    """

    def __init__(self, feature_width: int, hidden_size: int, positions: int = 100) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_width, hidden_size)
        self.position = nn.Embedding(positions, feature_width)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """tokens [n, feature_width] and the position [n] of each token's clip -> [n, hidden_size].

        A position of -1 adds nothing (samples that hold all clips of a video have none).
        """
        tokens = tokens.to(self.linear.weight.dtype)
        places = self.linear(self.position(position.clamp(min=0)))
        return self.linear(tokens) + places.masked_fill((position < 0)[:, None], 0)

    @torch.no_grad()
    def match_scale(self, embeddings: Tensor, tokens: Tensor) -> None:
        """Scale the map so that projected `tokens` start as large as the language model's `embeddings`."""
        self.linear.bias.zero_()
        size = self.linear(tokens.to(self.linear.weight.dtype)).std()
        self.linear.weight.mul_(embeddings.std() / size)
