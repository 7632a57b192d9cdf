"""Packed training sequences: what the samples of a video share is computed once, exactly.

The samples of a video's clips repeat its text. Packed, a video is a trunk (BOS, instruction, product and the
text of its clips without visual slots) and a branch for each clip that is learnt (slot, visual tokens,
answer). A branch attends to the trunk up to where its clip begins and to itself, and its positions go on from
there: every token sees what it sees in its sample alone, so losses and gradients are the same.

Several short videos share a sequence without attending to each other; a video longer than a sequence may be
is divided into several, each with the trunk it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from videonarrator.clip_inputs import IGNORED, TokenRules, encode
from videonarrator.prompt import Story, Template, clip_segments, opening, sample_segments
from videonarrator.schema import NarratorError

if TYPE_CHECKING:
    from torch import Tensor

TRUNK = 0
"""Number of the trunk among a sequence's branches, which count from 1."""


@dataclass(frozen=True)
class Branch:
    """A clip that is learnt: its index, ids and labels, where it leaves the trunk, how many visual tokens it
    has, and its relative position 0..99.
    """

    clip: int
    ids: list[int]
    labels: list[int]
    start: int
    count: int
    position: int


@dataclass(frozen=True)
class VideoTree:
    """A video's trunk (ids) and branches, in order. The trunk of branch i is `trunk[: i.start]`."""

    video_id: str
    trunk: list[int]
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Tokens of the whole video, packed."""
        return self.branches[-1].start + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class PackedSequence:
    """Videos, or parts of one, in one sequence; all lists but the last three have an entry a token.

    positions: rotary positions. videos: number of the token's video in the sequence. branches: 0 for trunks,
    else the token's branch, counted through the sequence. limits: how many tokens of its video's trunk a
    token attends to. clips: (video id, clip index) of each slot in order; counts and places: its visual
    tokens and position 0..99.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    videos: list[int]
    branches: list[int]
    limits: list[int]
    clips: list[tuple[str, int]]
    counts: list[int]
    places: list[int]

    @property
    def samples(self) -> int:
        """Clips that are learnt."""
        return len(self.clips)


def video_tree(
    video_id: str,
    story: Story,
    learnt: Mapping[int, tuple[int, int]],
    template: Template,
    tokenizer: Any,
    rules: TokenRules,
) -> VideoTree:
    """The tree of a video's story.

    learnt: number of a clip (from 1) -> its visual tokens and relative position. Raises `NarratorError` where
    the tokenizer joins text across the place where a branch leaves the trunk (its samples cannot be packed
    then).
    """
    inner = replace(rules, bos=False)
    trunk, _ = encode([opening(story.product, template)], tokenizer, 0, rules)
    branches = []
    for clip in story.clips:
        if clip.number in learnt:
            count, position = learnt[clip.number]
            segments = clip_segments(clip, story.total, template, visual=True, target=True)
            ids, labels = encode(segments, tokenizer, count, inner)
            branches.append(Branch(clip.number - 1, ids, labels, len(trunk), count, position))
            alone, _ = encode(
                sample_segments(story, clip.number, template, later=False), tokenizer, count, rules
            )
            if alone != trunk + ids:
                raise NarratorError(
                    f"video {video_id}, clip {clip.number}: the tokenizer joins its text with that before; "
                    "its samples cannot be packed"
                )
        trunk = trunk + encode(clip_segments(clip, story.total, template), tokenizer, 0, inner)[0]
    return VideoTree(video_id, trunk[: branches[-1].start] if branches else trunk, tuple(branches))


def divided(tree: VideoTree, longest: int) -> list[VideoTree]:
    """`tree` in parts that are at most `longest` tokens long, each with as many branches as fit.

    Raises `NarratorError` naming the clip that is too long by itself.
    """
    parts: list[list[Branch]] = []
    size = 0
    for branch in tree.branches:
        alone = branch.start + len(branch.ids)
        if alone > longest:
            raise NarratorError(
                f"sample of video {tree.video_id}, clip {branch.clip + 1}, has {alone} tokens; a sequence "
                f"takes {longest}: shorten its text or its clip"
            )
        if parts and size + len(branch.ids) + branch.start <= longest:
            parts[-1].append(branch)
        else:
            parts.append([branch])
            size = 0
        size += len(branch.ids)
    return [replace(tree, trunk=tree.trunk[: part[-1].start], branches=tuple(part)) for part in parts]


def filled(trees: Sequence[VideoTree], longest: int) -> list[list[VideoTree]]:
    """The trees in groups of at most `longest` tokens: the longest first, each where it still fits first."""
    groups: list[list[VideoTree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda tree: -tree.length):
        for place, left in enumerate(room):
            if tree.length <= left:
                groups[place].append(tree)
                room[place] -= tree.length
                break
        else:
            groups.append([tree])
            room.append(longest - tree.length)
    return groups


def packed(trees: Sequence[VideoTree]) -> PackedSequence:
    """The trees as one sequence, one after the other."""
    made = PackedSequence([], [], [], [], [], [], [], [], [])
    branches = 0
    for number, tree in enumerate(trees):
        trunk = len(tree.trunk)
        made.ids.extend(tree.trunk)
        made.labels.extend([IGNORED] * trunk)
        made.positions.extend(range(trunk))
        made.videos.extend([number] * trunk)
        made.branches.extend([TRUNK] * trunk)
        made.limits.extend(range(1, trunk + 1))
        for branch in tree.branches:
            branches += 1
            length = len(branch.ids)
            made.ids.extend(branch.ids)
            made.labels.extend(branch.labels)
            made.positions.extend(range(branch.start, branch.start + length))
            made.videos.extend([number] * length)
            made.branches.extend([branches] * length)
            made.limits.extend([branch.start] * length)
            made.clips.append((tree.video_id, branch.clip))
            made.counts.append(branch.count)
            made.places.append(branch.position)
    return made


def attention_mask(sequence: PackedSequence, length: int | None = None) -> Tensor:
    """Which token attends to which: [length, length] of bool, row attends to column.

    length: with padding, which attends to itself alone (a row of nothing would be no number).
    """
    import torch

    size = len(sequence.ids)
    videos, branches, limits = (
        torch.tensor(values) for values in (sequence.videos, sequence.branches, sequence.limits)
    )
    places = torch.tensor(sequence.positions)  # of a trunk's token: its place in the trunk
    at = torch.arange(size)
    same = videos[:, None] == videos[None]
    own = (branches[:, None] == branches[None]) & (branches[:, None] != TRUNK) & (at[None] <= at[:, None])
    trunk = (branches[None] == TRUNK) & (places[None] < limits[:, None])
    mask = torch.eye(length or size, dtype=torch.bool)
    mask[:size, :size] = same & (own | trunk)
    return mask
