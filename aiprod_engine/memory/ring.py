"""Device slots through which streamed blocks pass, filled ahead of the computation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

from ..errors import EngineError
from .home import Home
from .staging import Staging


class Ring:
    """Hands out the blocks `homes` in order, again and again, each in one of `slots` buffers.

    As soon as a block was used, its slot takes the next block that has none; after the last block
    comes the first, for the next forward. A worker fills the slots beside the computation, on CUDA
    through page-locked memory and on a stream of its own. A single slot needs no worker: the block
    is copied when it is asked for.
    """

    def __init__(self, homes: Sequence[Home], device: torch.device, slots: int) -> None:
        self._homes = homes
        self._slots: list[Slot] = []
        self._coming: deque[tuple[Slot, Home, Callable[[], None]]] = deque()
        self._worker = ThreadPoolExecutor(1, "aiprod-blocks") if slots > 1 else None
        self._handed_out = self._fetched = 0
        kind = CudaSlot if slots > 1 and device.type == "cuda" else Slot
        for _ in range(slots):
            self._slots.append(kind(max(home.loaded_bytes for home in homes), device))
        for slot in self._slots:
            self._fetch(slot)

    def __del__(self) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Device bytes of all slots."""
        return sum(slot.buffer.nbytes for slot in self._slots)

    @property
    def locked_bytes(self) -> int:
        """Page-locked host bytes."""
        return sum(slot.locked_bytes for slot in self._slots)

    @property
    def is_at_start(self) -> bool:
        """Whether the first block comes next."""
        return bool(self._slots) and self._handed_out % len(self._homes) == 0

    @contextmanager
    def block(self) -> Iterator[None]:
        """In this context the next block computes on the device; raises what its copy raised."""
        if not self._coming:
            raise EngineError(
                "a streamed network runs one forward at a time; this one was overtaken by another"
            )
        slot, home, arrive = self._coming.popleft()
        self._handed_out += 1
        arrive()
        slot.begin(home)
        home.move_in(slot.buffer)
        try:
            yield
        finally:
            home.move_out()
            slot.end()
        self._fetch(slot)

    def close(self) -> None:
        """Wait for the copy that is under way, drop the others and give all slots back."""
        self._coming.clear()
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        while self._slots:
            self._slots.pop().close()

    def _fetch(self, slot: Slot) -> None:
        if not self._slots:  # closed while the block was computing
            return
        home = self._homes[self._fetched % len(self._homes)]
        self._fetched += 1
        if self._worker is None:
            arrive = partial(slot.fill, home)
        else:
            arrive = self._worker.submit(slot.fill, home).result
        self._coming.append((slot, home, arrive))


class Slot:
    """A byte buffer on the device; whoever copies into it waits."""

    locked_bytes = 0

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)

    def fill(self, home: Home) -> None:
        with torch.inference_mode():  # per thread: a worker has to enter it itself
            home.pack(self.buffer)

    def begin(self, home: Home) -> None:
        """Called before the block computes, by who computes: changes are work of its device.

        In the worker, adapters would be fused beside computations that they share switches with.
        """
        with torch.inference_mode():
            home.make_changes(self.buffer)

    def end(self) -> None:
        """Called when all work of the block was issued."""

    def close(self) -> None:
        """Called when no fill is under way; no member may be called afterwards."""
        del self.buffer


class CudaSlot(Slot):
    """Mapped file -> page-locked memory by the worker, from there to the device by a copy stream.

    Two events order the streams: `copied` before the block computes, `used` before the buffer is
    written again.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__(size, device)
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # The allocator may have handed out memory that kernels in flight still use.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._copied, self._used = torch.cuda.Event(), torch.cuda.Event()
        with torch.cuda.device(device):  # else locking would occupy the first device too
            self._staging = Staging(size)  # last: what is locked has to be closed

    @property
    def locked_bytes(self) -> int:
        return self._staging.locked_bytes

    def fill(self, home: Home) -> None:
        with torch.inference_mode(), torch.cuda.device(self._device):
            self._copied.synchronize()  # until then the device reads the staging buffer
            home.pack(self._staging.buffer)
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._used)
                source = self._staging.buffer[: home.loaded_bytes]
                self.buffer[: home.loaded_bytes].copy_(source, non_blocking=True)
                self._copied.record(self._stream)

    def begin(self, home: Home) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        super().begin(home)

    def end(self) -> None:
        self._used.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        self._stream.synchronize()  # else the allocator could hand out what is being written
        self._staging.close()
        super().close()
