"""The blocks of a network: which ones stay on the device, and how the others visit it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .home import Home
from .ring import Ring

_GOLDEN = (math.sqrt(5) - 1) / 2
_COPIES_BESIDE = ("cuda", "cpu")  # other devices copy and compute in turn


def residency_order(count: int) -> list[int]:
    """Block indices in the order in which they become resident.

    Every prefix is spread evenly over the depth (multiples of the golden ratio), so that copies
    overlap with computation, and a smaller budget keeps a subset of what a larger one keeps.
    """
    return sorted(range(count), key=lambda index: index * _GOLDEN % 1)


def resident_set(
    sizes: Sequence[int], room: float, slots: int, loads: Sequence[int] | None = None
) -> frozenset[int]:
    """Indices of the blocks that stay when blocks and ring together may take `room` bytes.

    Where not even the ring has room, all blocks stream. `loads` are the sizes of the blocks when
    they travel, where these differ.
    """
    order, loads = residency_order(len(sizes)), sizes if loads is None else loads
    for count in range(len(order), 0, -1):
        resident = order[:count]
        if sum(sizes[i] for i in resident) + ring_bytes(loads, resident, slots) <= room:
            return frozenset(resident)
    return frozenset()


def ring_bytes(sizes: Sequence[int], resident: Collection[int], slots: int) -> int:
    """Bytes of the ring: `slots` times the largest streamed block, or one slot per block."""
    streamed = [size for index, size in enumerate(sizes) if index not in resident]
    return max(streamed, default=0) * min(slots, len(streamed))


class BlockVisits:
    """Yields the blocks of a network, ready one after the other: the network's `ready_blocks`.

    It knows the blocks but not the network, which thus dies with its last user.
    """

    def __init__(self, slots: int) -> None:
        self.homes: list[Home] = []
        self.resident: dict[int, Tensor] = {}
        self._slots = slots
        self._device: torch.device | None = None
        self._ring: Ring | None = None

    @property
    def sizes(self) -> list[int]:
        return [home.nbytes for home in self.homes]

    @property
    def placed_bytes(self) -> int:
        """Device bytes of resident blocks and ring."""
        ring = 0 if self._ring is None else self._ring.nbytes
        return sum(buffer.nbytes for buffer in self.resident.values()) + ring

    @property
    def locked_bytes(self) -> int:
        """Page-locked host bytes of the ring."""
        return 0 if self._ring is None else self._ring.locked_bytes

    def place(self, device: torch.device, room: float) -> None:
        """Make the blocks that fit `room` bytes beside a ring resident, and no others."""
        loads = [home.loaded_bytes for home in self.homes]
        wanted = resident_set(self.sizes, room, self._slots_on(device), loads)
        if self._device == device and wanted == self.resident.keys():
            return
        self.close_ring()
        for index in self.resident.keys() - wanted:
            self.homes[index].move_out()
            del self.resident[index]
        for index in sorted(wanted - self.resident.keys()):
            self.resident[index] = self.homes[index].copy_to(device)
        self._device = device
        self._open_ring()

    def follow(self, homes: Sequence[Home]) -> int:
        """Go on with other `homes` of the same blocks, without the ring.

        Returns the bytes of changed tensors that were read again at home.
        """
        old, self.homes, count = self.homes, list(homes), 0
        for index, buffer in self.resident.items():
            self.resident[index], read = self.homes[index].follow(old[index], buffer)
            self.homes[index].move_in(self.resident[index])
            count += read
        return count

    def release(self) -> None:
        """Leave the device."""
        self.close_ring()
        for index in self.resident:
            self.homes[index].move_out()
        self.resident.clear()
        self._device = None

    def close_ring(self) -> None:
        """Join the worker and free the slots; the next forward makes new ones."""
        if self._ring is not None:
            self._ring.close()
        self._ring = None

    def __call__(self, blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
        """Yield each block while its weights are on the device.

        A forward that ends early, by an error in here or by not asking for more, frees the ring.
        """
        if self._ring is None or not self._ring.is_at_start:
            self.close_ring()
            self._open_ring()
        ring, is_done = self._ring, False
        try:
            for index, block in enumerate(blocks):
                if ring is None or index in self.resident:
                    yield block
                    continue
                with ring.block():
                    yield block
            is_done = True
        finally:
            if ring is not None and not is_done:
                ring.close()

    def _open_ring(self) -> None:
        if self._device is None or len(self.resident) == len(self.homes):
            return
        streamed = [home for index, home in enumerate(self.homes) if index not in self.resident]
        self._ring = Ring(streamed, self._device, min(self._slots_on(self._device), len(streamed)))

    def _slots_on(self, device: torch.device) -> int:
        return self._slots if device.type in _COPIES_BESIDE else 1
