"""Compression and memory against the published code's tensors and a plain re-statement of the rules."""

import hashlib
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from videonarrator.timeline import frame_numbers
from videonarrator.visual_memory import clip_tokens, compress, consolidate, video_clip_tokens


def plain_similarities(means):
    values = []
    for left, right in pairwise(means):
        zero = not left.any() or not right.any()
        values.append(torch.zeros((), dtype=left.dtype) if zero else cosine_similarity(left, right, dim=0))
    return values


def plain_compress(frames, threshold=0.9):
    """The rule word for word: everything is computed again after each drop."""
    kept = list(range(len(frames)))
    while len(kept) > 1:
        values = plain_similarities([frames[index].mean(dim=0) for index in kept])
        best = 0
        for place, value in enumerate(values):
            if value > values[best]:
                best = place
        if not values[best] >= threshold:
            break
        kept.pop(best + 1)
    return kept


def plain_consolidate(frames):
    merged = [(frame, frame.mean(dim=0)) for frame in frames]
    while len(merged) > 1:
        values = plain_similarities([mean for _, mean in merged])
        best = 0
        for place, value in enumerate(values):
            if value > values[best]:
                best = place
        (first, first_mean), (second, second_mean) = merged[best], merged[best + 1]
        merged = [*merged[:best], ((first + second) / 2, (first_mean + second_mean) / 2), *merged[best + 2 :]]
    return merged[0][0]


def plain_clip_tokens(earlier, own, threshold=0.9):
    frames = [own[index] for index in plain_compress(own, threshold)]
    if earlier:
        frames.insert(0, plain_consolidate([frame for clip in earlier for frame in clip]))
    return torch.cat(frames)


def same_bytes(left, right):
    assert left.dtype == right.dtype and left.shape == right.shape
    return left.contiguous().view(torch.uint8).equal(right.contiguous().view(torch.uint8))


def some_frames(count, dtype, seed, drift=0.5):
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(32, 24, generator=generator, dtype=torch.float64)
    frames = []
    for _ in range(count):
        frames.append(frame)
        step = drift * torch.rand((), generator=generator, dtype=torch.float64)
        frame = frame + step * torch.randn(32, 24, generator=generator, dtype=torch.float64)
    return torch.stack(frames).to(dtype)


def test_published_clip_tensors_byte_for_byte(upstream, upstream_features):
    annotations = json.loads((upstream / "all_video_data.json").read_text())
    written = {}
    for video_id, frames in upstream_features.items():
        by_clip = []
        for clip in annotations[f"{video_id}.mp4"]["frames"]:
            own = [frames[number] for number in frame_numbers(*clip["time"]) if number in frames]
            by_clip.append(torch.stack(own) if own and "new_text" in clip else None)
        for index, tokens in enumerate(video_clip_tokens(by_clip)):
            if tokens is not None:
                written[f"{video_id}_{index}.pkl"] = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    expected = json.loads((upstream / "clips.json").read_text())
    assert len(expected) == 25
    assert written == {name: clip["sha256"] for name, clip in expected.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_random_videos_equal_the_plain_rules(dtype, seed):
    by_clip = [some_frames(count, dtype, 10 * seed + count) for count in (1, 5, 2, 9)]
    tokens = video_clip_tokens(by_clip)
    for index, own in enumerate(by_clip):
        assert same_bytes(tokens[index], plain_clip_tokens(by_clip[:index], own))


A, B = some_frames(2, torch.float64, 7, drift=0.3).unbind()
ZERO, OPPOSITE = torch.zeros_like(A), -A

ADVERSARIAL = {
    "one frame": [A],
    "identical": [A] * 6,
    "ties": [A, B, A, B, A, B],
    "two ties of identical frames": [A, A, -A, -A, B, B],
    "zeros": [ZERO, ZERO, ZERO],
    "zeros between": [A, ZERO, A, ZERO, B],
    "zero after opposites": [A, OPPOSITE, A, OPPOSITE],
    "scaled": [A, 2 * A, 3 * A, B, 0.5 * B],
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_frames_equal_the_plain_rules(name, dtype):
    frames = torch.stack(ADVERSARIAL[name]).to(dtype)
    kept, indices = compress(frames)
    assert indices == plain_compress(frames)
    assert same_bytes(kept, frames[indices])
    assert same_bytes(consolidate(frames), plain_consolidate(frames))
    assert consolidate(frames).isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([A, B, ZERO, OPPOSITE, A + B]), min_size=1, max_size=8), st.floats(-1, 1))
def test_any_mixture_equals_the_plain_rules(frames, threshold):
    frames = torch.stack(frames).float()
    assert compress(frames, threshold)[1] == plain_compress(frames, threshold)
    assert same_bytes(consolidate(frames), plain_consolidate(frames))


def test_identical_frames_become_one_and_the_first_tie_wins():
    assert compress(torch.stack([A] * 5))[1] == [0]
    assert compress(torch.stack([A, A, -A, -A]))[1] == [0, 2]
    # all neighbours equally alike: the first two are merged first, then the nearer neighbour joins them
    assert torch.equal(consolidate(torch.stack([A, B, A, B])), (((A + B) / 2 + A) / 2 + B) / 2)
    assert torch.equal(consolidate(torch.stack([A, A])), A)


def test_the_later_frame_is_dropped_and_similarity_at_the_threshold_counts():
    value = cosine_similarity(A.mean(0), B.mean(0), dim=0).item()
    frames = torch.stack([A, B])
    assert compress(frames, value)[1] == [0]
    assert compress(frames, value + 1e-12)[1] == [0, 1]


def test_left_out_clips_add_nothing_and_the_input_stays():
    first, second = some_frames(3, torch.float32, 1), some_frames(4, torch.float32, 2)
    before = first.clone()
    tokens = video_clip_tokens([first, None, first[:0], second])
    assert tokens[1] is None and tokens[2] is None
    assert same_bytes(tokens[3], clip_tokens([first], second))
    assert torch.equal(first, before)
    kept = len(compress(second)[1])
    assert tokens[0].shape == (32 * len(compress(first)[1]), 24) and tokens[3].shape == (32 * (1 + kept), 24)


@pytest.mark.parametrize("shape", [(0, 32, 8), (32, 8)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected frames"):
        compress(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected frames"):
        consolidate(torch.zeros(shape))
