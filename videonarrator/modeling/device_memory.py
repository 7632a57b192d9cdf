"""What memory a device has left, and whether an error says that it had none."""

from __future__ import annotations

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had: of the GPU (what torch keeps in reserve included), or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` is one of the many ways in which memory runs out."""
    told = str(error).lower()
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(
        words in told for words in ("allocate memory", "bad_alloc", "out of memory", "alloc_failed")
    )
