"""Videos to frame features: stills at one a second through the encoder (and a CLIP, where one is given) into
the feature store, video by video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_process.feature_store import MANIFEST, FeatureStore
from data_process.frames import iter_frames, probe
from data_process.video_file import for_each_video

if TYPE_CHECKING:  # they need transformers 5, and LAVIS's environment (lavis_features) has an old one
    from data_process.clip_features import ClipFrameEncoder
    from data_process.qformer import FrameEncoder


class Encodes(Protocol):
    """What makes features of stills, uint8 [height, width, 3]: [stills, ...]."""

    def encode(self, stills: Sequence[np.ndarray], batch_size: int) -> Tensor: ...


def feature_settings(source: str, encoder: FrameEncoder, dtype: torch.dtype) -> dict[str, Any]:
    """What the feature store's manifest remembers: all that can move a feature."""
    from data_process.qformer import encoder_fingerprint

    return {
        "encoder": source,
        "encoder_sha256": encoder_fingerprint(source),
        "fps": 1,
        "preprocessing": encoder.preprocessing.described(),
        "vision_dtype": str(dtype).removeprefix("torch."),
        "dtype": "float32",
        "width": encoder.width,
        "tokens": encoder.config.num_query_tokens,
    }


def video_features(
    encoder: Encodes, path: Path, batch_size: int, clip: ClipFrameEncoder | None = None
) -> tuple[list[int], Tensor, Tensor | None]:
    """Frame numbers, features [frames, 32, width] and, where `clip` is given, CLIP features [frames, clip
    dim] of a whole video; stills are held a batch at a time.
    """
    numbers: list[int] = []
    features: list[Tensor] = []
    clip_features: list[Tensor] = []
    frames = iter_frames(path, range(1, probe(path).n_frames + 1))
    while batch := list(islice(frames, batch_size)):
        stills = [still for _, still in batch]
        numbers += [number for number, _ in batch]
        features.append(encoder.encode(stills, batch_size))
        if clip is not None:
            clip_features.append(clip.encode(stills, batch_size))
    return numbers, torch.cat(features), torch.cat(clip_features) if clip is not None else None


def extract(
    videos: Sequence[Path],
    source: str,
    out: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    clip_source: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Features of `videos` into the store `out`. Returns failed video -> reason.

    source: the BLIP-2; clip_source: a CLIP whose features of the same frames are stored beside.
    Features that are there, whole and not older than their video, are kept.
    """
    from data_process.clip_features import clip_settings, load_clip
    from data_process.qformer import load_encoder

    if (out / MANIFEST).exists():
        FeatureStore.open(out)  # another kind of folder is refused before the encoder is loaded
    encoder = load_encoder(source, device=device, dtype=dtype)
    settings = feature_settings(source, encoder, dtype)
    clip = None if clip_source is None else load_clip(clip_source, device=device, dtype=dtype)
    if clip_source is not None and clip is not None:
        settings["clip"] = clip_settings(clip_source, clip)
    store = FeatureStore.create(out, settings)

    def save(path: Path) -> None:
        if not is_stored(store, path):
            store.write(path.stem, *video_features(encoder, path, batch_size, clip))

    return for_each_video(videos, save, "features", say)


def is_stored(store: FeatureStore, path: Path) -> bool:
    """Whether the store holds the video's features, whole and not older than the video."""
    if not path.is_file() or not store.has(path.stem):
        return False
    return store.file(path.stem).stat().st_mtime >= path.stat().st_mtime
