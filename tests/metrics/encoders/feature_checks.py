"""Texts to encode, and how features are compared."""

import numpy as np
import torch

ROUNDING = 1e-6
TEXTS = ["", "你好", "这款面霜质地轻薄不油腻。", "SK-II神仙水 75ml，只要299!", "“补水”～👍", " ", "面" * 60]


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=-1, keepdim=True)).numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING)
