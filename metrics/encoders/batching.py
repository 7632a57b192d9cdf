"""Texts into features: each distinct text once, in batches of equally many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from videonarrator.schema import NarratorError

TOKENS = 4096
"""Tokens of a batch: bounds memory; beyond it, larger batches gain nothing."""

SMALL = 20_000_000
"""Weights of a network whose operations are too short to be shared among threads."""


class TextFeatures:
    """The L2-normalised features of texts; each distinct text is encoded once in the object's life.

    A batch holds texts of one length in tokens, so nothing is padded and a text's feature does not depend on
    its company (but for rounding in the seventh digit).

    tokenize: texts -> token ids with the special ones, the last id being special; forward: ids
    [texts, tokens] -> features [texts, dim]. Texts of more than max_tokens are cut, their last id kept;
    `truncated` counts them.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], list[list[int]]],
        forward: Callable[[Tensor], Tensor],
        *,
        dim: int,
        max_tokens: int,
        device: str | torch.device,
    ) -> None:
        self.tokenize, self.forward = tokenize, forward
        self.dim, self.max_tokens, self.device = dim, max_tokens, device
        self.truncated = 0
        self._features: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dim]."""
        self._encode([text for text in dict.fromkeys(texts) if text not in self._features])
        rows = [self._features[text] for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> None:
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text, ids in zip(texts, self.tokenize(texts) if texts else [], strict=True):
            if len(ids) > self.max_tokens:
                self.truncated += 1
                ids = [*ids[: self.max_tokens - 1], ids[-1]]
            by_length.setdefault(len(ids), []).append((text, ids))
        for length, group in by_length.items():
            size = max(1, TOKENS // length)
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                ids = torch.tensor([ids for _, ids in batch], device=self.device)
                features = normalize(self.forward(ids).float(), dim=-1).cpu().numpy()
                self._features.update(zip((text for text, _ in batch), features, strict=True))


@contextmanager
def fitting_threads(network: nn.Module) -> Iterator[None]:
    """One thread for a small network, torch's number for others.

    On two busy cores the second thread made a network of 300,000 weights 20 times slower.
    """
    threads = torch.get_num_threads()
    if sum(weight.numel() for weight in network.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_device(device: str) -> None:
    """Raise `NarratorError` unless torch can compute there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch is built without CUDA
        reason = str(error).split("\n")[0]
        raise NarratorError(f"device {device!r}: {reason}; type cpu, or cuda where there is one") from error
