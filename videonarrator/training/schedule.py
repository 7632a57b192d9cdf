"""Learning rates: each schedule as a share of the full rate, a function of the step alone."""

from __future__ import annotations

import math


def rate_factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    """The share of the full learning rate that step `step` (from 0) of `steps` takes.

    cosine, linear, constant_with_warmup: linear warm-up from 0, then down to 0 (or level), as in
    transformers. warmup_decay: DeepSpeed's WarmupDecayLR, logarithmic warm-up and linear decay, which the
    published DeepSpeed file brings in place of the cosine.
    """
    if step < warmup_steps:
        if schedule == "warmup_decay":
            return math.log(step + 1) / math.log(warmup_steps) if warmup_steps > 1 else 1.0
        return step / warmup_steps
    if schedule == "constant_with_warmup":
        return 1.0
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return max(0.0, 1.0 - done)
