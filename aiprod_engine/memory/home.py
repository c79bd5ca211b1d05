"""The tensors of a module as they were loaded, and how device copies take their place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

ALIGNMENT = 16  # bytes: what the vectorised loads of every kernel want


class Change(Protocol):
    """What one tensor becomes wherever a copy of it lies, such as adapters fused into a weight."""

    @property
    def cargo(self) -> Sequence[Tensor]:
        """Tensors on the CPU that it needs beside the copy, on the copy's device."""

    def __call__(self, copy: Tensor, cargo: Sequence[Tensor]) -> None:
        """Turn `copy`, which holds the loaded values, into the changed ones, in place."""


@dataclass(frozen=True, eq=False)
class _Place:
    """One tensor: where the module holds it, as it was loaded, where it lies in a packed copy.

    `offset` and `cargo`, the offsets of what `change` needs, are in bytes.
    """

    owner: nn.Module
    leaf: str
    tensor: Tensor
    offset: int
    change: Change | None
    cargo: tuple[int, ...]

    def copy_in(self, buffer: Tensor) -> Tensor:
        """The tensor's copy inside a packed buffer."""
        return _view(buffer, self.offset, self.tensor)

    def is_like(self, other: _Place | None) -> bool:
        """Whether its copy holds the same as the copy of `other`."""
        if other is None or self.change is not other.change:
            return False
        one, two = self.tensor, other.tensor
        return (one.data_ptr(), one.shape, one.dtype) == (two.data_ptr(), two.shape, two.dtype)


class Home:
    """Every parameter and buffer of a module, views of the mapped file where loading could.

    A device copy is one contiguous byte buffer with the tensors at aligned offsets, so that a whole
    block travels as one transfer and quantised payloads are bytes like any other. Leaving the
    device copies nothing back: the home tensors just return to their places.

    `changes` (by name below `prefix`) are made in the copies, by the device on which they lie; the
    home tensors stay as they were loaded. A copy that travels takes along what its changes need.
    """

    def __init__(
        self,
        module: nn.Module,
        without: Collection[nn.Module] = (),
        changes: Mapping[str, Change] | None = None,
        prefix: str = "",
    ) -> None:
        """Tensors of `module` except those inside the submodules `without`."""
        changes = changes or {}
        self._places: dict[str, _Place] = {}
        self.nbytes = 0  # of a device copy
        self.loaded_bytes = 0  # of a copy that travels
        found = list(_tensors(module, prefix, frozenset(map(id, without))))
        offsets = [self._room(tensor) for _, _, _, tensor in found]
        self.nbytes = self.loaded_bytes
        for offset, (name, owner, leaf, tensor) in zip(offsets, found, strict=True):
            change = changes.get(name)
            cargo = tuple(map(self._room, change.cargo)) if change else ()
            self._places[name] = _Place(owner, leaf, tensor.detach(), offset, change, cargo)

    def _room(self, tensor: Tensor) -> int:
        """Offset of the next free bytes, which `tensor` takes."""
        offset = self.loaded_bytes
        self.loaded_bytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return offset

    @property
    def names(self) -> Collection[str]:
        """Names of the tensors that live here."""
        return self._places.keys()

    def copy_to(self, device: torch.device) -> Tensor:
        """Let the module compute on `device`; returns the packed copy, (`nbytes`,) uint8."""
        buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        for place in self._places.values():
            _write(place, buffer)
        self.move_in(buffer)
        return buffer

    def pack(self, buffer: Tensor) -> None:
        """Copy every tensor, and the cargo, into `buffer` (at least `loaded_bytes`,) uint8.

        On any device; the changes are not made yet.
        """
        for place in self._places.values():
            _put(place.tensor, buffer, place.offset)
            if place.change is not None:
                for tensor, offset in zip(place.change.cargo, place.cargo, strict=True):
                    _put(tensor, buffer, offset)

    def make_changes(self, buffer: Tensor) -> None:
        """Make the changes in a copy that `pack` wrote, with the cargo that lies beside it."""
        for place in self._places.values():
            if place.change is not None:
                cargo = place.change.cargo
                views = [_view(buffer, o, t) for o, t in zip(place.cargo, cargo, strict=True)]
                place.change(place.copy_in(buffer), views)

    def follow(self, old: Home, buffer: Tensor) -> tuple[Tensor, int]:
        """Make the packed copy `buffer` of an `old` home of the module into one of this home.

        What is the same stays, at its address where all sizes are the same. Returns the copy and
        the bytes of changed tensors that were read again at home.
        """
        is_same_size = self._layout() == old._layout()
        copy = buffer if is_same_size else buffer.new_empty(self.nbytes)
        count = 0
        for name, place in self._places.items():
            before = old._places.get(name)
            if not place.is_like(before):
                _write(place, copy)
                count += place.tensor.nbytes if place.change or (before and before.change) else 0
            elif not is_same_size:
                _put(before.copy_in(buffer), copy, place.offset)
        return copy, count

    def move_in(self, buffer: Tensor) -> None:
        """Let the module compute with the packed copy in `buffer`."""
        for place in self._places.values():
            _assign(place.owner, place.leaf, place.copy_in(buffer))

    def move_out(self) -> None:
        """Give the module its home tensors back."""
        for place in self._places.values():
            _assign(place.owner, place.leaf, place.tensor)

    def change_at_home(self) -> int:
        """Let the module compute where it is, with copies of what changes; returns their bytes."""
        count = 0
        for place in self._places.values():
            if place.change is not None:
                copy = place.tensor.clone()
                place.change(copy, place.change.cargo)
                _assign(place.owner, place.leaf, copy)
                count += copy.nbytes
        return count

    def _layout(self) -> list[tuple]:
        return [(n, p.offset, p.tensor.shape, p.tensor.dtype) for n, p in self._places.items()]


def _write(place: _Place, buffer: Tensor) -> None:
    """Put a tensor with its change into a packed copy."""
    _put(place.tensor, buffer, place.offset)
    if place.change is not None:
        cargo = [tensor.to(buffer.device) for tensor in place.change.cargo]
        place.change(place.copy_in(buffer), cargo)


def _put(tensor: Tensor, buffer: Tensor, offset: int) -> None:
    raw = tensor.reshape(-1).view(torch.uint8)
    buffer[offset : offset + len(raw)].copy_(raw)


def _view(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    raw = buffer[offset : offset + like.nbytes]
    return raw.view(like.dtype).view(like.shape)


def _tensors(
    module: nn.Module, prefix: str, without: frozenset[int]
) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(name, owning module, attribute, tensor), depth first."""
    for table in (module._parameters, module._buffers):
        for leaf, tensor in table.items():
            if tensor is not None:
                yield prefix + leaf, module, leaf, tensor
    for name, child in module.named_children():
        if id(child) not in without:
            yield from _tensors(child, f"{prefix}{name}.", without)


def _assign(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
