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
from typing import Any

from videonarrator.clip_inputs import IGNORED, TokenRules, encode
from videonarrator.prompt import Story, Template, clip_segments, opening


@dataclass(frozen=True)
class Branch:
    """A sample: its index in the list, ids and labels from where it leaves the trunk (`start`) on."""

    sample: int
    ids: list[int]
    labels: list[int]
    start: int

    @property
    def length(self) -> int:
        """Tokens of the sample alone, its part of the trunk included."""
        return self.start + len(self.ids)


@dataclass(frozen=True)
class VideoTree:
    """A video's trunk (ids) and branches, in order. The trunk of branch i is `trunk[: i.start]`."""

    trunk: list[int]
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Tokens of the whole video, packed."""
        return self.branches[-1].start + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class PackedSequence:
    """Videos, or parts of one, in one sequence; all lists but the last have an entry a token.

    positions: rotary positions. videos: number of the token's video in the sequence. branches: 0 for trunks,
    else the token's branch, counted through the sequence. limits: how many tokens of its video's trunk a
    token attends to. samples: of branches 1, 2, ... the index in the list of samples.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    videos: list[int]
    branches: list[int]
    limits: list[int]
    samples: list[int]


def video_tree(
    story: Story,
    learnt: Mapping[int, tuple[int, int]],
    template: Template,
    tokenizer: Any,
    rules: TokenRules,
) -> VideoTree:
    """The tree of a video's story.

    learnt: number of a clip (from 1) -> index of its sample, and its number of visual tokens. The trunk ends
    where the last branch leaves it.
    """
    inner = replace(rules, bos=False)
    trunk, _ = encode([opening(story.product, template)], tokenizer, 0, rules)
    branches = []
    for clip in story.clips:
        if clip.number in learnt:
            sample, count = learnt[clip.number]
            segments = clip_segments(clip, story.total, template, visual=True, target=True)
            ids, labels = encode(segments, tokenizer, count, inner)
            branches.append(Branch(sample, ids, labels, len(trunk)))
        trunk = trunk + encode(clip_segments(clip, story.total, template), tokenizer, 0, inner)[0]
    return VideoTree(trunk[: branches[-1].start], tuple(branches))


def lone_tree(sample: int, ids: list[int], labels: list[int]) -> VideoTree:
    """A sample that shares nothing: no trunk, one branch."""
    return VideoTree([], (Branch(sample, ids, labels, 0),))


def divided(tree: VideoTree, longest: int) -> list[VideoTree]:
    """`tree` in parts that are at most `longest` tokens long, each with as many branches as fit.

    Raises `ValueError` where a branch with its part of the trunk is longer than that.
    """
    parts: list[list[Branch]] = []
    size = 0
    for branch in tree.branches:
        if branch.length > longest:
            raise ValueError(f"a branch of {branch.length} tokens does not fit into {longest}")
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
    made = PackedSequence([], [], [], [], [], [], [])
    branches = 0
    for number, tree in enumerate(trees):
        trunk = len(tree.trunk)
        made.ids.extend(tree.trunk)
        made.labels.extend([IGNORED] * trunk)
        made.positions.extend(range(trunk))
        made.videos.extend([number] * trunk)
        made.branches.extend([0] * trunk)
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
            made.samples.append(branch.sample)
    return made
