"""Which samples make an optimisation step, and which process computes what. Numbers only, no torch.

The plan depends on the settings and the lengths of the samples alone: every process makes the same one, and a
run that goes on makes it again. Epochs are one stream: a step may hold the end of one and the begin of the
next, as accumulation does in the published training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

Thing = TypeVar("Thing")


def orders(number: int, epochs: float, seed: int) -> list[list[int]]:
    """The order of `number` things in each epoch; the last one is cut where `epochs` is no whole number."""
    made = []
    for epoch in range(math.ceil(epochs)):
        order = list(range(number))
        random.Random(f"{seed} {epoch}").shuffle(order)
        part = min(1.0, epochs - epoch)
        made.append(order if part == 1.0 else order[: max(1, round(part * number))])
    return made


def whole_videos(
    epochs: Sequence[Sequence[int]], sizes: Sequence[int], samples_per_step: int
) -> list[list[int]]:
    """Steps of whole videos: each takes on videos until it has that many samples (clips).

    sizes: samples of each video. The last step has what is left.
    """
    steps: list[list[int]] = [[]]
    held = 0
    for order in epochs:
        for video in order:
            if held >= samples_per_step:
                steps.append([])
                held = 0
            steps[-1].append(video)
            held += sizes[video]
    return steps


def padded_batches(
    epochs: Sequence[Sequence[int]], batch_size: int, samples_per_step: int
) -> list[list[list[int]]]:
    """Steps of padded batches as the published training makes them (4 samples each, 32 to a step).

    A batch ends where its epoch does, and counts as a full one all the same.
    """
    batches = [
        list(order[start : start + batch_size])
        for order in epochs
        for start in range(0, len(order), batch_size)
    ]
    per_step = max(1, samples_per_step // batch_size)
    return [batches[start : start + per_step] for start in range(0, len(batches), per_step)]


def batches_of(samples: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The samples of one step in padded batches, those of like length together."""
    order = sorted(samples, key=lambda sample: -lengths[sample])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def shares(costs: Sequence[int], processes: int) -> list[list[int]]:
    """Indices into `costs`, shared out so that no process has much more to do than another.

    The dearest first, each to the process that has least.
    """
    given: list[list[int]] = [[] for _ in range(processes)]
    load = [0] * processes
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = min(range(processes), key=lambda process: (load[process], process))
        given[least].append(index)
        load[least] += costs[index]
    return given
