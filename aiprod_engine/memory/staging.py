"""Page-locked host buffers of exactly the size that was asked for."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

LARGEST_SHARE = 0.4  # of the available host memory: systems that lock more start to swap
_MEMORY = Path("/proc/meminfo")


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
    if int(status) == 0:  # cudaSuccess
        return True
    _forget_error()
    return False


def _forget_error() -> None:
    """Launch a kernel that fails: CUDA reports the error of a call again at the next launch."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda").add_(1)


def _lockable_bytes() -> float:
    """A share of the available host memory where the system tells it, else no limit.

    Available, not free: a weight file that was read fills what is free with its cached pages.
    """
    try:
        lines = _MEMORY.read_text().splitlines()
        found = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # Windows, macOS
        return float("inf")
    return int(found) * 1024 * LARGEST_SHARE
