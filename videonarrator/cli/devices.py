"""Device and precision as they are typed, checked before anything is loaded."""

from __future__ import annotations

import torch

from videonarrator.schema import NarratorError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_and_dtype(device: str, precision: str) -> tuple[str, torch.dtype]:
    """The device and dtype meant; `NarratorError` where this machine has no such device."""
    if precision not in DTYPES:
        raise NarratorError(f"unknown precision {precision!r}: {', '.join(DTYPES)}")
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise NarratorError(f"unknown device {device!r}: cpu, cuda, cuda:1, mps") from None
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise NarratorError(
            "no CUDA device here (torch sees none): leave out --device, or install torch for CUDA"
        )
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise NarratorError(f"no device {device}: there are {torch.cuda.device_count()} CUDA devices")
    try:
        torch.ones(1, dtype=DTYPES[precision], device=kind).sum().item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise NarratorError(f"device {device} cannot compute in {precision} here: {reason}") from error
    return device, DTYPES[precision]
