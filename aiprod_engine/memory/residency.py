"""Moves a network's weights between their home, the mapped file on the CPU, and a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import MismatchError
from .blocks import BlockVisits
from .free import is_out_of_memory
from .home import Change, Home

POLICIES = ("auto", "resident", "stream")
SLOTS = 2  # one block computes while the next one arrives


def granted(policy: str, room: float) -> float:
    """Bytes that `policy` lets the blocks take when `room` are there."""
    if policy not in POLICIES:
        raise MismatchError(f"residency must be one of {', '.join(POLICIES)}, got {policy!r}")
    return {"auto": room, "resident": math.inf, "stream": 0.0}[policy]


class Residency:
    """Owns a loaded network and keeps its device bytes within a budget.

    Everything outside the blocks goes to the device as a whole; of the blocks, which the network
    names by `streamable`, as many stay as the budget allows, the rest pass through a ring of
    `slots`. What it names by `stays_home` never moves. A network without blocks is one block. On
    the CPU the home tensors compute as they are, unless `always_copies`.

    Changes such as adapters (see `adapt`) are made by the device in its copies: once in a block
    that stays, at every visit in one that streams, with the same bits. The home stays as it was
    loaded. Only where the home tensors themselves compute, what changes is copied on the CPU.
    """

    def __init__(
        self,
        module: nn.Module,
        policy: str = "auto",
        slots: int = SLOTS,
        always_copies: bool = False,
    ) -> None:
        granted(policy, 0)  # raises for an unknown policy
        self.module = module
        self.policy = policy
        self.always_copies = always_copies
        self._device: torch.device | None = None
        self._outside: Tensor | None = None
        self._changes: Mapping[str, Change] = {}
        self._visits = BlockVisits(slots)
        if hasattr(module, "streamable"):
            module.ready_blocks = self._visits
        self._home, self._visits.homes = self._homes(self._changes)

    @property
    def device(self) -> torch.device | None:
        """Device on which the network is ready to compute; None while it is at home only."""
        return self._device

    @property
    def total_bytes(self) -> int:
        """Device bytes of the whole network when nothing streams."""
        return self._home.nbytes + sum(self._visits.sizes)

    @property
    def placed_bytes(self) -> int:
        """Device bytes in use: outside of the blocks, resident blocks, ring."""
        if self._device is None:
            return 0
        if self._outside is None:  # computes at home
            return self.total_bytes
        return self._outside.nbytes + self._visits.placed_bytes

    @property
    def locked_bytes(self) -> int:
        """Page-locked host bytes in use."""
        return self._visits.locked_bytes

    @property
    def resident_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that stay on the device."""
        return tuple(sorted(self._visits.resident))

    @property
    def streamed_blocks(self) -> int:
        """How many blocks visit the device one after the other."""
        if self._outside is None:
            return 0
        return len(self._visits.homes) - len(self._visits.resident)

    @property
    def resident_bytes(self) -> int:
        """Device bytes of the blocks that stay, which `shrink` could give back."""
        return sum(buffer.nbytes for buffer in self._visits.resident.values())

    @torch.inference_mode()
    def place(self, device: torch.device, budget_bytes: float = math.inf) -> int:
        """Be ready to compute on `device` within `budget_bytes`; return the bytes that were added.

        The least that it takes is what is outside the blocks, and a ring. Called again, it moves
        only the blocks in which the two budgets differ.
        """
        if self._device not in (None, device):
            self.release()
        before = self.placed_bytes
        if self._device is None:
            # Adapters beside the weights may have come or gone since.
            self._home, self._visits.homes = self._homes(self._changes)
            self._device = device
            if device.type != "cpu" or self.always_copies:
                self._outside = self._home.copy_to(device)
            else:
                self._change_at_home()
        if self._outside is not None:
            self._visits.place(device, granted(self.policy, budget_bytes - self._home.nbytes))
        return self.placed_bytes - before

    def grow(self, extra_bytes: float) -> int:
        """Use up to `extra_bytes` more on the present device; return the bytes that were added."""
        return self.place(self._present_device(), self.placed_bytes + extra_bytes)

    @torch.inference_mode()
    def shrink(self, wanted_bytes: float) -> int:
        """Stream as many more blocks as free `wanted_bytes`; return what was freed.

        That is less where the rest and a ring need more than would be left.
        """
        device, before = self._present_device(), self.placed_bytes
        if self._outside is not None:
            self._visits.place(device, before - wanted_bytes - self._home.nbytes)
        return before - self.placed_bytes

    def release(self) -> int:
        """Drop everything on the device; return the bytes that were freed."""
        freed = self.placed_bytes
        self._visits.release()
        self._go_home()
        self._outside = self._device = None
        return freed

    @torch.inference_mode()
    def adapt(
        self, changes: Mapping[str, Change], rebuild: Callable[[], object] | None = None
    ) -> int:
        """From now on make `changes`, by tensor name, and no others; `rebuild` what has to be.

        `rebuild` may put other modules and buffers into the network, which is at home meanwhile.
        Copies on the device follow: what neither the old nor the new changes touch is not copied
        again. Returns the bytes that were read at home for it. If that fails, all leaves the
        device and the next `place` makes it good; running out of memory is no error here.
        """
        self._visits.close_ring()
        self._go_home()
        try:
            if rebuild is not None:
                rebuild()
            found = self._homes(changes)
            self._changes = changes
            return self._follow(*found)
        except BaseException as error:
            self.release()
            if self._changes is not changes or not is_out_of_memory(error):
                raise
            return 0

    def unlock(self) -> int:
        """Give page-locked host memory back until the next forward; return the bytes."""
        freed = self.locked_bytes
        self._visits.close_ring()
        return freed

    def _homes(self, changes: Mapping[str, Change]) -> tuple[Home, list[Home]]:
        """Where the network's tensors live, now that it is at home: outside of the blocks, blocks.

        Raises if a changed tensor does not exist or never moves.
        """
        module, name = self.module, getattr(self.module, "streamable", None)
        blocks = [] if name is None else list(getattr(module, name))
        stays = [getattr(module, stays) for stays in getattr(module, "stays_home", ())]
        outside = Home(module, [*blocks, *stays], changes)
        homes = [Home(b, (), changes, f"{name}.{i}.") for i, b in enumerate(blocks)]
        if missing := changes.keys() - set().union(*(home.names for home in (outside, *homes))):
            raise MismatchError(f"the network has no tensor {min(missing)} that could change")
        return outside, homes

    def _follow(self, outside: Home, homes: list[Home]) -> int:
        """Go on with other homes of the same network, which is at home."""
        old, self._home = self._home, outside
        if self._outside is None:
            self._visits.homes = homes
            return 0 if self._device is None else self._change_at_home()
        self._outside, count = outside.follow(old, self._outside)
        outside.move_in(self._outside)
        return count + self._visits.follow(homes)

    def _change_at_home(self) -> int:
        return sum(home.change_at_home() for home in (self._home, *self._visits.homes))

    def _go_home(self) -> None:
        """Give the network the tensors back with which it was loaded."""
        if self._device is not None:
            for home in (self._home, *self._visits.homes):
                home.move_out()

    def _present_device(self) -> torch.device:
        if self._device is None:
            raise MismatchError("the network is on no device yet; place it first")
        return self._device
