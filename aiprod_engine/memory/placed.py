"""One phase on the device: when memory runs out it runs again, with less there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from ..errors import OutOfMemory
from .free import is_out_of_memory, release_cached
from .plan import MARGIN, Need, Way, amount
from .residency import Residency

_log = logging.getLogger(__name__)
_CPU = torch.device("cpu")

T = TypeVar("T")


def nothing_more() -> bool:
    """There is nothing else on the device that could leave it."""
    return False


class Placed:
    """Networks that are ready to compute for one phase, and what gives where memory ends.

    In this order: what else is on the device (`evict` says whether anything left), the `way` in
    which the phase runs, resident blocks, half of them at a time, and, for a phase that may, the
    device itself. `free` are the bytes left beside the weights.
    """

    def __init__(
        self,
        need: Need,
        residencies: Sequence[Residency],
        free: float = math.inf,
        evict: Callable[[], bool] = nothing_more,
    ) -> None:
        self.need = need
        self.free = free
        self._ways = need.ways_within(math.inf, need.ways[0])
        self._residencies = tuple(residencies)
        self._evict = evict
        self._has_left = False

    @classmethod
    def alone(cls, name: str, network: nn.Module) -> Placed:
        """A network where it is, in a phase of which nothing is known."""
        return cls(Need(name, (), (Way("", 0),)), [Residency(network)])

    @property
    def way(self) -> Way:
        """How the phase runs now; what it runs may read this at every attempt."""
        return self._ways[0]

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return tuple(residency.module for residency in self._residencies)

    @property
    def room(self) -> float:
        """Bytes for activations, less a margin for kernels."""
        return self.free * (1 - MARGIN)

    @property
    def weights(self) -> int:
        """Device bytes of the networks with their rings."""
        return sum(residency.placed_bytes for residency in self._residencies)

    def describe(self) -> str:
        """One line for the log: needed, free, plan."""
        total = self.weights + self.way.activations
        needed = f"{amount(total)} ({amount(self.weights)} weights)"
        free = "" if math.isinf(self.free) else f", free {amount(self.weights + self.free)}"
        plan = ", ".join(filter(None, (self._kept(), self.way.name)))
        return f"{self.need.name}: needs {needed}{free}; {plan}"

    def settle(self, free: float, first: Way) -> None:
        """Run in the first way from `first` on that fits into `free` bytes beside the weights."""
        self.free = free
        self._ways = self.need.ways_within(self.room, first)

    def begin(self, place: Callable[[], object]) -> None:
        """Run `place`, which puts the networks on the device, until they are somewhere."""
        while True:
            try:
                place()
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            for residency in self._residencies:
                residency.release()
            if self._evict():
                continue
            if self.leaves():
                return
            raise self.failure()

    def run(self, function: Callable[..., T]) -> T:
        """`function(*networks)`, run again with less on the device while its memory runs out."""
        return self.attempt(lambda: function(*self.networks))

    def attempt(self, function: Callable[[], T]) -> T:
        """`function()`, which must be repeatable, run again while its memory runs out."""
        while True:
            try:
                return function()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Only here the error is gone, and with it the frames that hold the failed tensors.
            release_cached()
            if not (self._clears() or self._saves() or self._shrinks() or self.leaves()):
                raise self.failure()

    def gives(self) -> bool:
        """Take something off the device after an out-of-memory; False if nothing can be.

        For phases that change their way themselves.
        """
        release_cached()
        return self._clears() or self._shrinks()

    def leaves(self) -> bool:
        """Let a phase that may go on at the CPU; False if it may not or is there already."""
        if self._has_left or not self.need.may_leave:
            return False
        self._has_left = True
        for residency in self._residencies:
            residency.release()
            residency.always_copies = False
            residency.place(_CPU)
        release_cached()
        self.warn("the CPU, slowly")
        return True

    def warn(self, plan: str) -> None:
        """Say that memory ran out and how the phase goes on."""
        _log.warning("%s ran out of memory; going on with %s", self.need.name, plan)

    def _clears(self) -> bool:
        if not self._evict():
            return False
        self.warn("everything else off the device")
        return True

    def _saves(self) -> bool:
        if len(self._ways) < 2:
            return False
        self._ways = self._ways[1:]
        self.warn(self.way.name)
        return True

    def _shrinks(self) -> bool:
        if not (held := sum(residency.resident_bytes for residency in self._residencies)):
            return False
        for residency in self._residencies:
            residency.shrink(max(residency.resident_bytes / 2, 1))
        if sum(residency.resident_bytes for residency in self._residencies) == held:
            return False
        release_cached()
        self.warn(self._kept())
        return True

    def failure(self) -> OutOfMemory:
        """What a user is told when nothing gives any more."""
        least = min(way.activations for way in self.need.ways)
        weights = self.weights or self.need.least
        free = "" if math.isinf(self.free) else f", {amount(self.free)} is free"
        return OutOfMemory(
            f"{self.need.name} must fit into memory: it needs {amount(least)} beside "
            f"{amount(weights)} of weights{free}; {self.need.remedy}"
        )

    def close(self) -> None:
        """Let networks that fled to the CPU go back to the device at their next use."""
        if self._has_left:
            for residency in self._residencies:
                residency.release()

    def _kept(self) -> str:
        streamed = sum(residency.streamed_blocks for residency in self._residencies)
        kept = sum(len(residency.resident_blocks) for residency in self._residencies)
        if not streamed:
            return "all weights stay"
        return f"{kept} of {kept + streamed} blocks stay, the others stream"
