"""A stack of LoRA files over one model: one data structure, fused or attached as a side path."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ...errors import MismatchError
from . import adapters
from .adapters import NOT_BESIDE, Adapter, Dora
from .file import LoraFile, read_lora
from .ic_lora import Reference, merge_references
from .names import stream_of
from .report import LoraReport

Strength = float | Mapping[str, float]

_STREAMS = {"video", "audio"}
_FUSED_INTO = (torch.float32, torch.bfloat16, torch.float16)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoraRecord:
    """One adapter of one tensor with the strength that its module gets."""

    adapter: Adapter
    strength: float


@dataclass(frozen=True, eq=False)
class LoraSet:
    """All changes that a stack of files makes, by tensor key of the model."""

    records: Mapping[str, tuple[LoraRecord, ...]]
    reports: tuple[LoraReport, ...] = ()
    reference: Reference = field(default_factory=Reference)

    @property
    def keys(self) -> frozenset[str]:
        """Tensor keys that change; two sets' keys say what a swap has to read again."""
        return frozenset(self.records)

    @property
    def modules(self) -> frozenset[str]:
        """Modules whose weight changes."""
        return frozenset(key[: -len(".weight")] for key in self.records if key.endswith(".weight"))

    def fuse(self, key: str, tensor: Tensor) -> Tensor:
        """`tensor` + all deltas of `key`, summed in float32 and rounded once to its dtype.

        Returns `tensor` itself where nothing changes it; never writes into it.
        """
        records = self.records.get(key)
        if not records:
            return tensor
        if tensor.dtype not in _FUSED_INTO:
            raise MismatchError(
                f"{key} is stored as {tensor.dtype}, adapters are fused into floating point "
                "weights only; attach them as a side path"
            )
        return adapters.fuse(tensor, [(r.adapter, r.strength) for r in records])

    def low_rank(self, module: str) -> tuple[Tensor, Tensor] | None:
        """float32 (down, up) of all adapters of a module along one rank; None if it has none.

        Raises for DoRA, which is no addition to the weight.
        """
        records = self.records.get(f"{module}.weight")
        return adapters.stack([(r.adapter, r.strength) for r in records]) if records else None

    def without(self, modules: Collection[str]) -> LoraSet:
        """The set without the weights of `modules`, which run with a side path instead."""
        beside = {f"{module}.weight" for module in modules}
        kept = {key: found for key, found in self.records.items() if key not in beside}
        return replace(self, records=MappingProxyType(kept))

    def check_beside(self, modules: Collection[str]) -> None:
        """Raise if an adapter of `modules` cannot run as a side path; costs nothing."""
        for module in self.modules.intersection(modules):
            if any(isinstance(r.adapter, Dora) for r in self.records[f"{module}.weight"]):
                raise MismatchError(f"{module}: {NOT_BESIDE}")

    def describe(self) -> str:
        """One line per file: what was applied and what was not."""
        return "\n".join(report.describe() for report in self.reports)


def load_loras(
    files: Iterable[tuple[str | Path, Strength]], shapes: Mapping[str, Sequence[int]]
) -> LoraSet:
    """Adapters of `files` (path, strength) for a model whose tensors have `shapes` (key -> shape).

    A strength is a number, or one per stream: {"video": 1.0, "audio": 0.0}. Strength 0 means
    absent: the file is not opened. Raises if a file does not fit the model.
    """
    records: dict[str, list[LoraRecord]] = {}
    loaded: list[LoraFile] = []
    for path, strength in files:
        by_stream = _by_stream(strength, Path(path).name)
        if not any(by_stream.values()):
            continue
        file = read_lora(path, shapes)
        file.report.check()
        if file.report.unmatched:
            _log.warning("%s", file.report.describe())
        loaded.append(file)
        for key, found in file.adapters.items():
            if factor := by_stream[stream_of(key)]:
                records.setdefault(key, []).extend(LoraRecord(a, factor) for a in found)
    return LoraSet(
        MappingProxyType({key: tuple(found) for key, found in records.items()}),
        tuple(file.report for file in loaded),
        merge_references(file.reference for file in loaded),
    )


def _by_stream(strength: Strength, file: str) -> dict[str, float]:
    by_stream = strength if isinstance(strength, Mapping) else dict.fromkeys(_STREAMS, strength)
    if set(by_stream) != _STREAMS or not all(isfinite(value) for value in by_stream.values()):
        raise MismatchError(
            f"{file}: a strength is a finite number or one each for video and audio, "
            f"got {strength!r}"
        )
    return {stream: float(value) for stream, value in by_stream.items()}
