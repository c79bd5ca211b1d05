"""Moves one network's weights between their home (the mapped file, on the CPU) and a device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Placement:
    """Owns a loaded network and knows how many of its bytes are on the device.

    The home tensors are kept, so leaving the device copies nothing back: the device copies are
    dropped and the home tensors take their place. Nothing is placed twice and no second host copy
    of the model exists.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._home = {name: tensor for name, _, _, tensor in _slots(module)}
        self._device: torch.device | None = None

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._home.values())

    @property
    def placed_bytes(self) -> int:
        return self.total_bytes if self._device is not None else 0

    @property
    def device(self) -> torch.device | None:
        """Device on which the weights are ready to compute; None while they are at home only."""
        return self._device

    def place(self, device: torch.device) -> int:
        """Put every weight on `device`; returns the bytes that were added."""
        if self._device == device:
            return 0
        with torch.inference_mode():
            for name, owner, leaf, _ in list(_slots(self.module)):
                _assign(owner, leaf, self._home[name].to(device))
        self._device = device
        return self.total_bytes

    def release(self) -> int:
        """Drop the device copies; returns the bytes that were freed."""
        freed = self.placed_bytes
        if self._device is not None:
            for name, owner, leaf, _ in list(_slots(self.module)):
                _assign(owner, leaf, self._home[name])
        self._device = None
        return freed


def _slots(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(full name, owning module, attribute, tensor) of every parameter and buffer."""
    for prefix, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for leaf, tensor in table.items():
                if tensor is not None:
                    yield f"{prefix}.{leaf}" if prefix else leaf, owner, leaf, tensor


def _assign(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
