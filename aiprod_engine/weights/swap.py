"""Other adapters for a loaded network: only the tensors that they touch are read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .components import COMPONENTS
from .files import Files
from .loading import compute_dtype, load
from .lora.side_path import attach
from .lora.stack import LoraSet, Strength, load_loras
from .quant.linear import QuantizedLinear
from .reader import Reader
from .source import Source, find

Loras = Sequence[tuple[str | Path, Strength]]


class Holder(Protocol):
    """Who keeps copies of a network's tensors, such as a residency."""

    def replace(self, name: str, tensor: Tensor) -> None:
        """Use `tensor`, on the CPU, as the home of tensor `name`, and in every copy."""

    def release(self) -> object:
        """Drop the copies; they are made again from the network when it is next used."""


@dataclass(frozen=True)
class Swap:
    """What a change of adapters touched: tensors read again, side paths, bytes of the base read."""

    tensors: tuple[str, ...]
    side_paths: tuple[str, ...]
    bytes_read: int


@dataclass(frozen=True)
class Base:
    """A network without adapters; the arguments of `load`."""

    kind: str
    files: Files
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    modalities: str | None = None


@dataclass
class AdaptedNetwork:
    """A network whose adapters change without loading it again.

    Weights are never un-fused: every touched tensor is made anew from the pristine file, so that
    any way to a set of adapters gives the same bits. On an accelerator parameters keep their
    addresses; on the CPU, where they may be views of the mapped file, they are exchanged. A swap
    that fails half-way leaves the network dirty: what it touched is made anew by the next `ready`
    or `swap`.
    """

    base: Base
    loras: Loras = ()
    holder: Holder | None = None
    module: nn.Module = field(init=False)
    _source: Source = field(init=False)
    _adapters: LoraSet = field(init=False)
    _suspect: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        base = self.base
        self._source = find(base.kind, base.files)
        self.module = load(
            base.kind, base.files, base.device, base.dtype, self.loras, base.modalities
        )
        self._adapters = self._matched(self.loras)

    @property
    def is_dirty(self) -> bool:
        """Whether a swap failed half-way."""
        return bool(self._suspect)

    def ready(self) -> nn.Module:
        """The network with the adapters of the last swap that succeeded."""
        if self.is_dirty:
            self._change(self._adapters)
        return self.module

    def swap(self, loras: Loras) -> Swap:
        """Use `loras` (path, strength) from now on; raises before any change if one cannot be."""
        adapters = self._matched(loras)
        done = self._change(adapters)
        self.loras, self._adapters = tuple(loras), adapters
        return done

    def _matched(self, loras: Loras) -> LoraSet:
        shapes = {name: self._source.tensors[name].shape for name in self._names()}
        adapters = load_loras(loras, shapes)
        adapters.check_beside(self._packed())
        return adapters

    def _names(self) -> list[str]:
        """Tensors of the built network that the file holds as values."""
        stored = self._source.tensors
        return [n for n in self.module.state_dict() if n in stored and stored[n].shape is not None]

    def _packed(self) -> set[str]:
        modules = self.module.named_modules()
        return {name for name, module in modules if isinstance(module, QuantizedLinear)}

    def _change(self, adapters: LoraSet) -> Swap:
        keys = self._adapters.keys | adapters.keys | self._suspect
        packed = self._packed()
        beside = {key.removesuffix(".weight") for key in keys if key.endswith(".weight")} & packed
        fused = sorted(key for key in keys if key.removesuffix(".weight") not in beside)
        reader = _CountingReader(self._source, self._reading_device(), self._dtype(), adapters)
        self._suspect = frozenset(keys)
        with torch.no_grad():
            for name in fused:
                self._put(name, reader.parameter(name))
        if beside:
            if self.holder is not None:
                self.holder.release()
            attach(self.module, adapters, compute_dtype(self.module, self._dtype()), beside)
        self._suspect = frozenset()
        return Swap(tuple(fused), tuple(sorted(beside)), reader.bytes_read)

    def _reading_device(self) -> torch.device:
        return torch.device("cpu" if self.holder is not None else self.base.device)

    def _dtype(self) -> torch.dtype | None:
        return torch.float32 if COMPONENTS[self.base.kind].float32 else self.base.dtype

    def _put(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        present = getattr(owner, leaf)
        tensor = tensor.reshape(present.shape)  # GGUF folds leading axes of one
        if self.holder is not None:
            self.holder.replace(name, tensor)
        elif present.device.type != "cpu":
            with torch.inference_mode():  # hosts load under it, then only it may write
                present.copy_(tensor)
        elif leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        else:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class _CountingReader(Reader):
    """Counts the stored bytes that it reads."""

    bytes_read = 0

    def raw(self, name: str) -> Tensor:
        tensor = super().raw(name)
        self.bytes_read += tensor.nbytes
        return tensor
