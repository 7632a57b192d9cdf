"""Neural encoders for the metrics: texts (InfoSim, InfoDiverse), texts and stills (EMScore), frame features.

`text` and `clip` load models and bring in torch; this module and `frames` do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

BACKENDS = ("transformers", "cn_clip", "open_clip")
"""Packages that a CLIP model can be loaded with, by name."""

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> one L2-normalised row each, [texts, dim]."""


def embed(texts: Sequence[str], encode: Encode) -> Callable[[Sequence[str]], np.ndarray]:
    """Encode the distinct ones of `texts` in one call; returns the look-up of some of them, [texts, dim].

    Raises `ValueError` where the encoder does not return a finite row for each.
    """
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = np.asarray(encode(list(rows)), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(rows) or not np.isfinite(vectors).all():
        raise ValueError(f"the encoder returned {vectors.shape} for {len(rows)} texts, or numbers not finite")
    return lambda some: vectors[[rows[text] for text in some]]
