"""One loaded network whose adapters change: its base is neither read again nor held twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .components import COMPONENTS
from .loading import compute_dtype
from .lora.adapters import Adapter, fuse, tensors_of, with_tensors
from .lora.side_path import SidePath, attach
from .lora.stack import LoraRecord, LoraSet, check_fusible, load_loras
from .probe import check_adapters
from .quant.linear import QuantizedLinear
from .reader import Reader
from .recipe import LoraUse, Recipe, stamp
from .source import find


class Holder(Protocol):
    """Who moves a network's tensors to a device, such as a residency."""

    def adapt(self, changes: Mapping[str, Fusing], rebuild: Callable[[], object] | None) -> int:
        """Make `changes` in every copy, in place of earlier ones, after `rebuild` ran at home.

        Returns the bytes of the home tensors that were copied for it.
        """


_log = logging.getLogger(__name__)

H = TypeVar("H", bound=Holder)


@dataclass(frozen=True, eq=False)
class Fusing:
    """What adapters make of one tensor: fused by the device on which its copy lies.

    `stored` reads the tensor with its adapters from the file, given a device, where the network
    holds it rounded: the sum is rounded once, so it needs what is stored.
    """

    records: tuple[LoraRecord, ...]
    stored: Callable[[torch.device], Tensor] | None = None

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        return tuple(record.adapter for record in self.records)

    @property
    def cargo(self) -> list[Tensor]:
        """The adapters' tensors, which have to be on the copy's device."""
        return [] if self.stored is not None else tensors_of(self.adapters)

    def __call__(self, copy: Tensor, cargo: Sequence[Tensor]) -> None:
        """Turn `copy`, the pristine weight, into the fused one."""
        if self.stored is not None:
            copy.copy_(self.stored(copy.device).reshape(copy.shape))
            return
        moved = iter(cargo)
        adapters = with_tensors(self.adapters, lambda _: next(moved))
        strengths = [record.strength for record in self.records]
        fuse(copy, list(zip(adapters, strengths, strict=True)), out=copy)


@dataclass(frozen=True)
class Swap:
    """What a change of adapters touched.

    Tensors that are fused, or were; modules with adapters beside them, now or before; bytes of the
    base that were read for copies on a device. Copies that are made later are not counted.
    """

    tensors: tuple[str, ...] = ()
    side_paths: tuple[str, ...] = ()
    bytes_read: int = 0


class AdaptedNetwork(Generic[H]):
    """A network that is loaded once, and takes the adapters of whoever uses it next.

    The weights at home stay views of the file. Whatever copy a device gets of one, the device
    makes from the pristine bytes and the factors: once where it stays, at every visit where it
    streams. No weight is ever un-fused, so any way to a set of adapters gives the same bits.
    Beside their weights run the adapters of packed layers, and those that are asked to.
    """

    def __init__(self, recipe: Recipe, hold: Callable[[nn.Module], H]) -> None:
        """Load the network of `recipe`, without its adapters, for the holder that `hold` makes."""
        self.recipe = recipe.without_loras()
        self.module = self.recipe.load()
        self.holder = hold(self.module)
        self._source = find(recipe.kind, recipe.files)
        self._dtype = torch.float32 if COMPONENTS[recipe.kind].float32 else recipe.dtype
        self._reader = Reader(self._source, torch.device("cpu"), self._dtype)
        self._used: tuple | None = ()
        self._fused: tuple[str, ...] = ()

    @property
    def own_bytes(self) -> int:
        """Bytes that the base takes on the CPU beside its files: what loading converted."""
        stored = self._source.tensors
        return sum(
            tensor.nbytes
            for name, tensor in self.module.state_dict().items()
            if name not in stored or not self._reader.is_view(name, tensor)
        )

    @property
    def loras(self) -> tuple[LoraUse, ...] | None:
        """The adapters that it has; None where a swap failed half-way, until the next one."""
        return None if self._used is None else tuple(use for use, *_ in self._used)

    def has(self, loras: Sequence[LoraUse]) -> bool:
        """Whether these are the adapters that it has, from files that did not change since."""
        return _stamped(loras) == self._used

    def use(self, loras: Sequence[LoraUse]) -> Swap:
        """Have `loras` from now on; raises before any change if one cannot be."""
        wanted = _stamped(loras)
        if wanted == self._used:
            return Swap()
        fused, beside = self._matched([use for use, *_ in wanted])
        changes = {key: self._fusing(key, fused) for key in fused.keys}
        had = {n for n, m in self.module.named_modules() if _has_adapter(m)}
        dtype = compute_dtype(self.module, self._dtype)
        rebuild = partial(attach, self.module, beside, dtype) if had or beside.keys else None
        self._used = None
        count = self.holder.adapt(changes, rebuild)
        tensors = sorted({*self._fused, *changes})
        self._used, self._fused = wanted, tuple(changes)
        _log.info("LoRAs: %d fused, %d beside; %d MB of the model read again",
                  len(changes), len(beside.modules), count >> 20)  # fmt: skip
        return Swap(tuple(tensors), tuple(sorted(had | beside.modules)), count)

    def _matched(self, loras: Sequence[LoraUse]) -> tuple[LoraSet, LoraSet]:
        """What is fused, and what runs beside a weight."""
        stored = self._source.tensors
        names = [n for n in self.module.state_dict() if n in stored and stored[n].shape is not None]
        files = [(u.path, {"video": u.video, "audio": u.audio}, u.beside) for u in loras]
        modules = self.module.named_modules()
        packed = {name for name, module in modules if isinstance(module, QuantizedLinear)}
        found = load_loras(files, {name: stored[name].shape for name in names})
        if self.recipe.check_values:
            check_adapters(found)
        return found.split(packed)

    def _fusing(self, key: str, adapters: LoraSet) -> Fusing:
        path, _, leaf = key.rpartition(".")
        check_fusible(key, getattr(self.module.get_submodule(path), leaf).dtype)
        if self._reader.is_exact(key):
            return Fusing(adapters.records[key])
        # Not a closure over this network: it would keep itself alive through its holder.
        return Fusing(adapters.records[key], partial(_read, self._reader, adapters, key))


def _read(reader: Reader, adapters: LoraSet, key: str, device: torch.device) -> Tensor:
    return reader.on(device, adapters).parameter(key)


def _has_adapter(module: nn.Module) -> bool:
    return isinstance(module, SidePath) and module.adapter_down is not None


def _stamped(loras: Sequence[LoraUse]) -> tuple[tuple[LoraUse, int, int], ...]:
    """Those that act, with what changes when their file is replaced."""
    return tuple((use, *stamp(use.path)) for use in loras if use.video or use.audio)
