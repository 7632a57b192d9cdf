"""Made-up clips: texts are words between blanks, "x" is no content word, a text's vector is a random one."""

import hashlib
from collections.abc import Sequence

import numpy as np

from metrics.emscore import ClipParts

DIM = 8


def vector(text: str, dim: int = DIM) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(dim)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def encode(texts: Sequence[str], dim: int = DIM) -> np.ndarray:
    return np.stack([vector(text, dim) for text in texts])


def tagged(text: str) -> list[tuple[str, str]]:
    return [(word, "x" if word == "x" else "vn" if len(word) % 2 else "n") for word in text.split()]


def random_clips(number: int, seed: int = 0) -> tuple[list[str], list[str], list[np.ndarray]]:
    rng = np.random.default_rng(seed)

    def texts() -> list[str]:
        return [" ".join(rng.choice(list("abcdefx"), rng.integers(1, 7))) for _ in range(number)]

    narrations, references = texts(), texts()
    frames = [rng.standard_normal((rng.integers(1, 25), DIM)).astype(np.float32) for _ in range(number)]
    return narrations, references, frames


def halves(parts: ClipParts, padding: bool) -> dict[str, dict[str, np.ndarray]]:
    """Each clip's numbers by the published names of the three kinds."""
    assert parts.references is not None
    frames, references = parts.frames.scores(padding), parts.references.scores(padding)
    both = {name: (frames[name] + references[name]) / 2 for name in frames}
    return {"EMScore(X,V)": frames, "EMScore(X,X*)": references, "EMScore(X,V,X*)": both}
