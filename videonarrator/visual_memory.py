"""From a video's frames to each clip's visual tokens (paper, section 4: memory and visual compression).

Inside a clip, frames that look like the one before are dropped; what earlier clips showed is merged into one
memory frame that stands before the clip's own. Both work on the most similar pair of neighbours, measured by
the cosine of the frames' mean tokens; the published English mode compresses nothing, and merges by the cosine
of the frames' CLIP features instead. All arithmetic is done in the features' dtype, on their device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

THRESHOLD = 0.9
"""Neighbouring frames of a clip at least this similar are one frame (paper, section 4)."""


def compress(frames: Tensor, threshold: float | None = THRESHOLD) -> tuple[Tensor, list[int]]:
    """A clip's frames without the near repeats: the kept frames, unchanged, and their indices.

    frames: [frames, tokens, dim] in order. While the most similar pair of neighbours is at least `threshold`
    alike, its later frame is dropped; of equally similar pairs the first. The first frame always stays.
    threshold None: no compression, all frames stay.
    """
    _check(frames)
    if threshold is None:
        return frames, list(range(len(frames)))
    means = frames.mean(dim=1)  # [frames, dim]
    # in float16 a similarity is compared with the nearest float16, as it would be tensor against number
    limit = torch.tensor(threshold, dtype=frames.dtype).item()
    kept = list(range(len(frames)))
    similarities = _similarities(means[:-1], means[1:])
    while similarities and max(similarities) >= limit:
        pair = similarities.index(max(similarities))
        del kept[pair + 1], similarities[pair]
        if pair < len(similarities):
            first, second = kept[pair], kept[pair + 1]
            similarities[pair] = _similarities(means[first, None], means[second, None])[0]
    return frames[kept], kept


def consolidate(frames: Tensor, keys: Tensor | None = None) -> Tensor:
    """All `frames` [frames, tokens, dim], in order, merged to the one memory frame [tokens, dim].

    The most similar pair of neighbours (the first, where several are) gives way to its average, tokens and
    mean tokens alike and unweighted, until one frame is left.
    keys: vectors [frames, key dim] that take the place of the mean tokens: their cosine decides which pair,
    and they are averaged alongside.
    """
    _check(frames)
    merged = list(frames)  # each [tokens, dim]
    if keys is None:
        keys = frames.mean(dim=1)
    if keys.dim() != 2 or len(keys) != len(frames):
        raise ValueError(f"expected keys [{len(frames)}, key dim], got shape {tuple(keys.shape)}")
    means = list(keys)  # each [key dim]
    similarities = _similarities(keys[:-1], keys[1:])
    while similarities:
        pair = similarities.index(max(similarities))
        merged[pair : pair + 2] = [(merged[pair] + merged[pair + 1]) / 2]
        means[pair : pair + 2] = [(means[pair] + means[pair + 1]) / 2]
        left = max(pair - 1, 0)
        near = torch.stack(means[left : pair + 2])  # the merged frame and its neighbours
        similarities[left : pair + 2] = _similarities(near[:-1], near[1:])
    return merged[0]


def clip_tokens(
    earlier: Sequence[Tensor],
    own: Tensor,
    threshold: float | None = THRESHOLD,
    earlier_keys: Sequence[Tensor] | None = None,
) -> Tensor:
    """A clip's visual tokens [tokens * (1 + kept frames), dim]; without the 1 where nothing was shown before.

    earlier: the uncompressed frames [frames, tokens, dim] of each earlier clip, in order; own: this clip's. A
    frame that two clips share enters the memory twice. threshold: see `compress`; earlier_keys: of each
    earlier clip, see `consolidate`.
    """
    kept, _ = compress(own, threshold)
    before = [frames for frames in earlier if len(frames)]
    if before:
        keys = None if earlier_keys is None else torch.cat(list(earlier_keys))
        kept = torch.cat([consolidate(torch.cat(before), keys)[None], kept])
    return kept.flatten(0, 1)


def video_clip_tokens(
    frames_by_clip: Sequence[Tensor | None],
    threshold: float | None = THRESHOLD,
    keys_by_clip: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """The visual tokens of each clip of a video (`clip_tokens`), in order.

    frames_by_clip: each clip's frames [frames, tokens, dim]; None or no frames for a clip that is left out:
    it gets None and adds nothing to the memory of later ones. keys_by_clip: of each clip's frames the vectors
    [frames, key dim] by which the memory merges (None: the mean tokens); a left-out clip's are not looked at.
    """
    shown: list[Tensor] = []
    shown_keys: list[Tensor] = []
    tokens: list[Tensor | None] = []
    for index, frames in enumerate(frames_by_clip):
        if frames is None or not len(frames):
            tokens.append(None)
            continue
        tokens.append(clip_tokens(shown, frames, threshold, None if keys_by_clip is None else shown_keys))
        shown.append(frames)
        if keys_by_clip is not None:
            shown_keys.append(keys_by_clip[index])
    return tokens


def fit_tokens(tokens: Tensor, number: int) -> Tensor:
    """Visual tokens [tokens, dim] cut, or padded with zeros, to [number, dim] (samples of whole videos)."""
    return pad(tokens[:number], (0, 0, 0, max(number - len(tokens), 0)))


def _similarities(left: Tensor, right: Tensor) -> list[float]:
    """Cosine of each row of `left` with that of `right` [pairs, dim]; 0 for a vector of zeros."""
    return cosine_similarity(left, right, dim=-1).nan_to_num(nan=0.0).tolist()


def _check(frames: Tensor) -> None:
    if frames.dim() != 3 or not len(frames):
        raise ValueError(f"expected frames [frames >= 1, tokens, dim], got shape {tuple(frames.shape)}")
