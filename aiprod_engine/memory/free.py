"""How much of a device is free, and how to tell that it was not enough."""

from __future__ import annotations

import math

import torch

# RuntimeErrors of allocators that have no class of their own: CPU, CPU on Windows, Apple and its
# largest buffer, asynchronous CUDA. cuDNN tries all its kernels, and drops what each one failed
# with, before it finds none: with shapes as plain as ours that is their workspace.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Invalid buffer size",
    "ALLOC_FAILED",
    "unable to find an engine",
)


def free_bytes(device: torch.device) -> float:
    """Bytes that can be allocated on a CUDA device, infinite elsewhere.

    The CPU computes with the mapped file, which the system drops when it needs the memory.
    """
    if device.type != "cuda":
        return math.inf
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def release_cached() -> None:
    """Give what torch keeps for later allocations back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
