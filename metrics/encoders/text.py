"""Text features as InfoSim and InfoDiverse want them: mean-pooled, L2-normalised states of a BERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from metrics.encoders.batching import TextFeatures, check_device, fitting_threads
from metrics.encoders.loading import identity, load_network, load_tokenizer, model_folder, token_ids


class TextEncoder:
    """Texts -> mean of the last hidden states over all tokens, the special ones included, L2-normalised.

    name: class, SHA-256 of the model's files and longest text in tokens, for signatures; dim: width.
    """

    def __init__(self, model: Any, tokenizer: Any, *, digest: str, device: str | torch.device) -> None:
        model = model.to(device).eval().requires_grad_(False)
        self._network = model
        self.dim: int = model.config.hidden_size
        max_tokens = min(model.config.max_position_embeddings, tokenizer.model_max_length)
        self.name = f"{type(model).__name__} sha256:{digest} mean-pooled max-tokens:{max_tokens}"
        self._features = TextFeatures(
            lambda texts: token_ids(tokenizer, texts),
            lambda ids: model(input_ids=ids).last_hidden_state.mean(dim=1),
            dim=self.dim,
            max_tokens=max_tokens,
            device=device,
        )

    @property
    def truncated(self) -> int:
        """How many distinct texts were cut to the model's longest (the published code crashes there)."""
        return self._features.truncated

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dim]; each distinct text is encoded once in the encoder's life. "" is a text."""
        with fitting_threads(self._network):
            return self._features(texts)


def load_text_encoder(model: str, device: str = "cpu") -> TextEncoder:
    """The encoder of a local folder or hub name (chinese-roberta-wwm-ext-large, or any BERT), in float32.

    Raises `NarratorError` where it is not there or lacks weights.
    """
    check_device(device)
    folder = model_folder(model)
    network = load_network(AutoModel, folder, unused=("pooler.",))
    tokenizer = load_tokenizer(AutoTokenizer, folder, network.config.vocab_size)
    return TextEncoder(network, tokenizer, digest=identity(folder), device=device)
