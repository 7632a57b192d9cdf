"""Videos to frame features: stills at one a second through the encoder into the feature store, video by
video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_process.feature_store import MANIFEST, FeatureStore
from data_process.frames import iter_frames, probe
from data_process.qformer import FrameEncoder, encoder_fingerprint, load_encoder
from data_process.video_file import for_each_video


def feature_settings(source: str, encoder: FrameEncoder, dtype: torch.dtype) -> dict[str, Any]:
    """What the feature store's manifest remembers: all that can move a feature."""
    return {
        "encoder": source,
        "encoder_sha256": encoder_fingerprint(source),
        "fps": 1,
        "preprocessing": f"bicubic {encoder.image_size}x{encoder.image_size}, CLIP mean and deviation",
        "vision_dtype": str(dtype).removeprefix("torch."),
        "dtype": "float32",
        "width": encoder.width,
        "tokens": encoder.config.num_query_tokens,
    }


def video_features(encoder: FrameEncoder, path: Path, batch_size: int) -> tuple[list[int], Tensor]:
    """Frame numbers and features [frames, 32, width] of a whole video; stills are held a batch at a time."""
    numbers: list[int] = []
    features: list[Tensor] = []
    batch: list[np.ndarray] = []
    for number, still in iter_frames(path, range(1, probe(path).n_frames + 1)):
        numbers.append(number)
        batch.append(still)
        if len(batch) == batch_size:
            features.append(encoder.encode(batch, batch_size))
            batch = []
    if batch:
        features.append(encoder.encode(batch, batch_size))
    return numbers, torch.cat(features)


def extract(
    videos: Sequence[Path],
    source: str,
    out: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Features of `videos` into the store `out`. Returns failed video -> reason.

    Features that are there, whole and not older than their video, are kept.
    """
    if (out / MANIFEST).exists():
        FeatureStore.open(out)  # another kind of folder is refused before the encoder is loaded
    encoder = load_encoder(source, device=device, dtype=dtype)
    store = FeatureStore.create(out, feature_settings(source, encoder, dtype))

    def save(path: Path) -> None:
        if not _is_stored(store, path):
            store.write(path.stem, *video_features(encoder, path, batch_size))

    return for_each_video(videos, save, "features", say)


def _is_stored(store: FeatureStore, path: Path) -> bool:
    if not path.is_file() or not store.has(path.stem):
        return False
    return store.file(path.stem).stat().st_mtime >= path.stat().st_mtime
