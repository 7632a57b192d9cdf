"""Texts in batches: each encoded once, nothing padded, long ones cut and counted, threads as they fit."""

from pathlib import Path

import numpy as np
import torch
from feature_checks import assert_close
from PIL import Image

from metrics.encoders.batching import TOKENS, TextFeatures, fitting_threads
from metrics.encoders.clip import ClipEncoder, load_clip_encoder
from metrics.encoders.text import TextEncoder, load_text_encoder


def test_each_text_is_encoded_once_and_nothing_is_padded() -> None:
    seen: list[list[int]] = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        assert ids.numel() <= max(TOKENS, ids.shape[1])
        seen.extend(ids.tolist())
        return torch.stack([ids.sum(1), ids[:, -1]], dim=1).double()

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[7, *map(ord, text), 9] for text in texts]

    features = TextFeatures(tokenize, forward, dim=2, max_tokens=5, device="cpu")
    texts = [chr(97 + i % 26) * (i % 3) for i in range(5000)] + [chr(1000 + i) for i in range(3000)]
    texts += ["abc", "abcd", "abce"]
    rows = features(texts)
    assert sorted(seen) == sorted(tokenize(sorted({*texts} - {"abcd", "abce"})) + [[7, 97, 98, 99, 9]] * 2)
    for text, row in zip(texts, rows, strict=True):
        total = np.array([16 + sum(map(ord, text[:3])), 9.0])
        np.testing.assert_allclose(row, total / np.linalg.norm(total), rtol=1e-6)
    assert features.truncated == 2
    features(texts)
    assert features.truncated == 2 and len(seen) == len({*texts})


def test_small_networks_take_one_thread(
    clip_encoder: ClipEncoder, text_encoder: TextEncoder, pictures: list[Image.Image]
) -> None:
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(10_000, 2_000, device="meta")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with fitting_threads(small):
            assert torch.get_num_threads() == 1
        with fitting_threads(large):
            assert torch.get_num_threads() == 2
        text_encoder.encode(["线程"])
        clip_encoder.encode_texts(["线程"])
        clip_encoder.encode_images(pictures)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_long_texts_are_cut_and_counted(models: Path) -> None:
    for encode, encoder in (
        ((text := load_text_encoder(str(models / "chinese-roberta"))).encode, text),
        ((clip := load_clip_encoder(str(models / "chinese-clip"))).encode_texts, clip),
    ):
        longest = encode(["面" * 510])
        assert encoder.truncated == 0
        assert_close(encode(["面" * 510 + "霜" * 90]), longest)
        assert encoder.truncated == 1
        assert encoder.name.endswith(" max-tokens:512")
