"""Seconds to frames, and a clip's relative position in its video (SPEC of the data: one frame a second)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

POSITIONS = 100
"""Size of the position table: relative positions are 0..99."""


def frame_numbers(start: float, end: float) -> range:
    """Numbers (from 1) of the frames of a clip `[start, end)` in seconds; frame k is the still at second k-1.

    These are the k with `int(start)+1 <= k < int(end)+1`, and at least one.
    """
    first = int(start) + 1
    return range(first, max(int(end), first) + 1)


def clip_positions(durations: Sequence[float], kept: Sequence[int]) -> list[int]:
    """Relative position 0..99 of each kept clip (paper, section 4: visual projection with relative position).

    durations: length in seconds of every annotated clip, left-out ones included. kept: indices of the clips
    that are narrated, ascending. A position is the clip's middle in hundredths of the summed durations; the
    first kept clip gets 0 and the last one 99, a single one 0.
    """
    # added up one by one: from Python 3.12 on, sum() rounds otherwise
    ends = list(accumulate(durations))
    positions = []
    for rank, index in enumerate(kept):
        if rank == 0:
            position = 0
        elif rank == len(kept) - 1:
            position = POSITIONS - 1
        else:
            middle = ends[index] - durations[index] / 2
            position = min(int(POSITIONS * middle / ends[-1]), POSITIONS - 1)
        positions.append(position)
    return positions


def clip_positions_by_rank(durations: Sequence[float], count: int) -> list[int]:
    """Relative positions as the published code has them: of the first `count` annotated clips.

    It numbers the `count` clips that are narrated from 0 on, and looks the times up under these numbers among
    all annotated clips: right only where none is left out. The first clip gets 0, the last one 99, a single
    one too. Its fraction is rounded before it becomes hundredths, so that a middle at exactly 29% gives 28.
    """
    ends = list(accumulate(durations))
    positions = [
        int((ends[rank] - durations[rank] / 2) / ends[-1] * POSITIONS) if rank else 0 for rank in range(count)
    ]
    return [*positions[:-1], POSITIONS - 1] if count else []
