"""Moves a network's weights between their home, the mapped file on the CPU, and a device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import MismatchError
from .blocks import BlockVisits
from .home import Home

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
        self._visits = BlockVisits(slots)
        if hasattr(module, "streamable"):
            module.ready_blocks = self._visits
        self._find_home()

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
            self._find_home()  # adapters may have come or gone since
            self._device = device
            if device.type != "cpu" or self.always_copies:
                self._outside = self._home.copy_to(device)
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
        if self._outside is not None:
            self._home.move_out()
        self._outside = self._device = None
        return freed

    @torch.inference_mode()
    def replace(self, name: str, tensor: Tensor) -> None:
        """Make `tensor`, on the CPU, the home of parameter or buffer `name` and of its copies.

        What is on the device keeps its address; nothing else is copied again.
        """
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        self._visits.close_ring()  # it may hold the old values of blocks to come
        held = [(self._home, self._outside)]
        held += [(h, self._visits.resident.get(i)) for i, h in enumerate(self._visits.homes)]
        if not any(home.replace(owner, leaf, tensor, copy) for home, copy in held):
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))  # stays home

    def unlock(self) -> int:
        """Give page-locked host memory back until the next forward; return the bytes."""
        freed = self.locked_bytes
        self._visits.close_ring()
        return freed

    def _find_home(self) -> None:
        module = self.module
        blocks = list(getattr(module, module.streamable)) if hasattr(module, "streamable") else []
        stays = [getattr(module, name) for name in getattr(module, "stays_home", ())]
        self._home = Home(module, without=[*blocks, *stays])
        self._visits.homes = [Home(block) for block in blocks]

    def _present_device(self) -> torch.device:
        if self._device is None:
            raise MismatchError("the network is on no device yet; place it first")
        return self._device
