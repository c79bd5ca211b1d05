"""The tensors of a module as they were loaded, and how device copies take their place."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from ..errors import MismatchError

ALIGNMENT = 16  # bytes: what the vectorised loads of every kernel want


class Home:
    """Every parameter and buffer of a module, views of the mapped file where loading could.

    A device copy is one contiguous byte buffer with the tensors at aligned offsets, so that a whole
    block travels as one transfer and quantised payloads are bytes like any other. Leaving the
    device copies nothing back: the home tensors just return to their places.
    """

    def __init__(self, module: nn.Module, without: Collection[nn.Module] = ()) -> None:
        """Tensors of `module` except those inside the submodules `without`."""
        places = list(_places(module, frozenset(map(id, without))))
        self._places = [(owner, leaf) for owner, leaf, _ in places]
        self._tensors = [tensor.detach() for _, _, tensor in places]
        self._offsets: list[int] = []
        self.nbytes = 0  # of a device copy
        for tensor in self._tensors:
            self._offsets.append(self.nbytes)
            self.nbytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT

    def copy_to(self, device: torch.device) -> Tensor:
        """Let the module compute on `device`; returns the packed copy, (`nbytes`,) uint8."""
        buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        self.pack(buffer)
        self.move_in(buffer)
        return buffer

    def pack(self, buffer: Tensor) -> None:
        """Copy every tensor into `buffer` (at least `nbytes`,) uint8, on any device."""
        for tensor, offset in zip(self._tensors, self._offsets, strict=True):
            raw = tensor.reshape(-1).view(torch.uint8)
            buffer[offset : offset + len(raw)].copy_(raw)

    def move_in(self, buffer: Tensor) -> None:
        """Let the module compute with the packed copy in `buffer`."""
        for (owner, leaf), home, offset in zip(
            self._places, self._tensors, self._offsets, strict=True
        ):
            raw = buffer[offset : offset + home.nbytes]
            _assign(owner, leaf, raw.view(home.dtype).view(home.shape))

    def replace(self, owner: nn.Module, leaf: str, tensor: Tensor, copy: Tensor | None) -> bool:
        """Make `tensor` the home of `leaf` of `owner`, and write it into the packed `copy`.

        False if the tensor does not live here; its shape and dtype must not change.
        """
        for index, place in enumerate(self._places):
            if place[0] is not owner or place[1] != leaf:
                continue
            home, offset = self._tensors[index], self._offsets[index]
            if (tensor.shape, tensor.dtype) != (home.shape, home.dtype):
                raise MismatchError(
                    f"{leaf} is {home.dtype} {tuple(home.shape)}, its replacement must be too; "
                    f"it is {tensor.dtype} {tuple(tensor.shape)}"
                )
            self._tensors[index] = tensor.detach()
            if copy is None:
                _assign(owner, leaf, self._tensors[index])
            else:
                raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                copy[offset : offset + len(raw)].copy_(raw)
            return True
        return False

    def move_out(self) -> None:
        """Give the module its home tensors back."""
        for (owner, leaf), tensor in zip(self._places, self._tensors, strict=True):
            _assign(owner, leaf, tensor)


def _places(module: nn.Module, without: frozenset[int]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(owning module, attribute, tensor), depth first."""
    for table in (module._parameters, module._buffers):
        for leaf, tensor in table.items():
            if tensor is not None:
                yield module, leaf, tensor
    for child in module.children():
        if id(child) not in without:
            yield from _places(child, without)


def _assign(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
