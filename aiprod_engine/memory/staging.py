"""Page-locked host buffers of exactly the size that was asked for."""

from __future__ import annotations

import logging
import os

import torch

_log = logging.getLogger(__name__)

LARGEST_SHARE = 0.4  # of the free host memory: systems that lock more start to swap


class Staging:
    """A host byte buffer that a CUDA copy can read at full speed; pageable where locking fails.

    Locked in place, because torch's own pinned allocator rounds up to powers of two: a block of
    773 MB would lock 1024 MB.
    """

    def __init__(self, size: int) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8)
        self._locked = size <= _lockable_bytes() and _register(self.buffer)
        if not self._locked:
            _log.info("host memory could not be page-locked: weights stream more slowly")

    @property
    def locked_bytes(self) -> int:
        return self.buffer.nbytes if self._locked else 0

    def close(self) -> None:
        """Unlock; the last copy from the buffer must have ended."""
        if self._locked:
            torch.cuda.cudart().cudaHostUnregister(self.buffer.data_ptr())
        self._locked = False
        self.buffer = self.buffer[:0].clone()


def _register(buffer: torch.Tensor) -> bool:
    status = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)
    return int(status) == 0  # cudaSuccess


def _lockable_bytes() -> float:
    """A share of the free host memory where the system tells it, else no limit."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return float("inf")
    return free * LARGEST_SHARE
