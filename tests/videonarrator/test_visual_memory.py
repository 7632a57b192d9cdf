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


def plain_consolidate(frames, keys=None):
    keys = [frame.mean(dim=0) for frame in frames] if keys is None else keys
    merged = list(zip(frames, keys, strict=True))
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


# -------------------- keys, and no compression (English mode)


def some_keys(count, dtype, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("seed", range(4))
def test_keys_decide_what_is_merged(dtype, seed):
    by_clip = [some_frames(count, dtype, 10 * seed + count) for count in (1, 5, 2, 9)]
    keys = [some_keys(len(frames), torch.float32, seed + len(frames)) for frames in by_clip]
    tokens = video_clip_tokens(by_clip, 0.9, keys)
    for index, own in enumerate(by_clip):
        expected = [own[kept] for kept in plain_compress(own)]
        if index:
            shown = [frame for clip in by_clip[:index] for frame in clip]
            expected.insert(0, plain_consolidate(shown, [key for clip in keys[:index] for key in clip]))
        assert same_bytes(tokens[index], torch.cat(expected))
    assert not torch.equal(tokens[3], video_clip_tokens(by_clip)[3])  # the mean tokens would choose others


def test_a_merge_worked_out_by_hand():
    """Keys are averaged as they are, not normalised first: a longer one draws the average to itself."""
    frames = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    keys = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.1]])
    # cosines .8, .6, .1: 0 and 1 merge to the key (.9, .3); its cosine with (0, 1) is .32, more than .1
    assert consolidate(frames, keys).unique().item() == (((0 + 1) / 2 + 2) / 2 + 3) / 2
    # the merged key is (10.4, .3); its cosine with (0, 1) is .03, so 2 and 3 merge before
    longer = keys * torch.tensor([[20.0], [1.0], [1.0], [1.0]])
    assert consolidate(frames, longer).unique().item() == ((0 + 1) / 2 + (2 + 3) / 2) / 2


def test_identical_keys_merge_as_mean_tokens_do():
    frames = some_frames(7, torch.float32, 3)
    assert same_bytes(consolidate(frames, frames.mean(dim=1)), consolidate(frames))
    assert same_bytes(consolidate(frames, torch.zeros(7, 4)), plain_consolidate(frames, torch.zeros(7, 4)))


def test_no_compression():
    frames = torch.stack([A] * 5)
    kept, indices = compress(frames, None)
    assert indices == [0, 1, 2, 3, 4] and torch.equal(kept, frames) and compress(frames)[1] == [0]
    tokens = video_clip_tokens([frames, None, frames[:2]], None)
    assert torch.equal(tokens[0], frames.flatten(0, 1)) and tokens[1] is None
    assert torch.equal(tokens[2], torch.cat([A, A, A]))


def test_a_left_out_clips_keys_are_not_looked_at():
    first, second = some_frames(3, torch.float32, 1), some_frames(4, torch.float32, 2)
    keys = [some_keys(3, torch.float32, 1), some_keys(9, torch.float32, 2), some_keys(4, torch.float32, 3)]
    tokens = video_clip_tokens([first, None, second], None, keys)
    assert same_bytes(tokens[2], torch.cat([consolidate(first, keys[0]), *second]))


@pytest.mark.parametrize("keys", [torch.zeros(2, 4), torch.zeros(3), torch.zeros(3, 4, 5)])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ValueError, match=r"expected keys \[3, key dim\]"):
        consolidate(torch.zeros(3, 32, 8), keys)


@pytest.mark.parametrize("shape", [(0, 32, 8), (32, 8)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected frames"):
        compress(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected frames"):
        consolidate(torch.zeros(shape))
