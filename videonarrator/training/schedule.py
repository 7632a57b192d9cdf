"""Learning rates: each schedule as a share of the full rate, a function of the step alone."""

from __future__ import annotations

import math


def rate_factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    """The share of the full learning rate that step `step` (from 0) of `steps` takes.

    cosine, linear, constant_with_warmup: linear warm-up from 0, then down to 0 (or level), as in
    transformers. warmup_decay: DeepSpeed's WarmupDecayLR, logarithmic warm-up (over two steps at least) and
    linear decay, which the published DeepSpeed file brings in place of the cosine. DeepSpeed moves it on
    after a step, beginning before its first value: the first two steps take 0.
    """
    if schedule == "warmup_decay":
        moved, warmup_steps = step - 1, max(2, warmup_steps)
        if moved < warmup_steps:
            return math.log(max(0, moved) + 1) / math.log(warmup_steps)
        return max(0.0, (steps - moved) / max(1, steps - warmup_steps))
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant_with_warmup":
        return 1.0
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return max(0.0, 1.0 - done)
