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
Lora = tuple[str | Path, Strength] | tuple[str | Path, Strength, bool]

_STREAMS = {"video", "audio"}
_FUSED_INTO = (torch.float32, torch.bfloat16, torch.float16)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoraRecord:
    """One adapter of one tensor with the strength that its module gets.

    `beside`: whether it runs beside the weight where it could also be fused into it.
    """

    adapter: Adapter
    strength: float
    beside: bool = False


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
        check_fusible(key, tensor.dtype)
        return adapters.fuse(tensor, [(r.adapter, r.strength) for r in records])

    def low_rank(self, module: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(down, up) of all adapters of one of `modules` along one rank.

        Raises for DoRA, which is no addition to the weight.
        """
        records = self.records[f"{module}.weight"]
        return adapters.stack([(r.adapter, r.strength) for r in records], dtype)

    def split(self, packed: Collection[str]) -> tuple[LoraSet, LoraSet]:
        """(what is fused, what runs beside a weight): the latter for `packed` modules in any case.

        Raises if an adapter cannot run beside its weight; costs nothing.
        """
        parts: tuple[dict, dict] = {}, {}
        for key, records in self.records.items():
            module, _, leaf = key.rpartition(".")
            for record in records:
                beside = leaf == "weight" and (record.beside or module in packed)
                if beside and isinstance(record.adapter, Dora):
                    raise MismatchError(f"{module}: {NOT_BESIDE}")
                parts[beside].setdefault(key, []).append(record)
        fused, beside = (
            replace(self, records=MappingProxyType({k: tuple(found) for k, found in part.items()}))
            for part in parts
        )
        return fused, beside

    def describe(self) -> str:
        """One line per file: what was applied and what was not."""
        return "\n".join(report.describe() for report in self.reports)


def check_fusible(key: str, dtype: torch.dtype) -> None:
    """Raise unless adapters are fused into weights of this dtype."""
    if dtype not in _FUSED_INTO:
        raise MismatchError(
            f"{key} is stored as {dtype}, adapters are fused into floating point "
            "weights only; attach them as a side path"
        )


def load_loras(files: Iterable[Lora], shapes: Mapping[str, Sequence[int]]) -> LoraSet:
    """Adapters of `files` (path, strength) for a model whose tensors have `shapes` (key -> shape).

    A strength is a number, or one per stream: {"video": 1.0, "audio": 0.0}. Strength 0 means
    absent: the file is not opened. A third True lets a file run beside the weights. Raises if a
    file does not fit the model.
    """
    records: dict[str, list[LoraRecord]] = {}
    loaded: list[LoraFile] = []
    for path, strength, *beside in files:
        by_stream = strength_by_stream(strength, Path(path).name)
        if not any(by_stream.values()):
            continue
        file = read_lora(path, shapes)
        file.report.check()
        if file.report.unmatched:
            _log.warning("%s", file.report.describe())
        loaded.append(file)
        for key, found in file.adapters.items():
            if factor := by_stream[stream_of(key)]:
                records.setdefault(key, []).extend(LoraRecord(a, factor, *beside) for a in found)
    return LoraSet(
        MappingProxyType({key: tuple(found) for key, found in records.items()}),
        tuple(file.report for file in loaded),
        merge_references(file.reference for file in loaded),
    )


def strength_by_stream(strength: Strength, file: str) -> dict[str, float]:
    """{"video": ..., "audio": ...} of either spelling; `file` is named in the error."""
    by_stream = strength if isinstance(strength, Mapping) else dict.fromkeys(_STREAMS, strength)
    if set(by_stream) != _STREAMS or not all(isfinite(value) for value in by_stream.values()):
        raise MismatchError(
            f"{file}: a strength is a finite number or one each for video and audio, "
            f"got {strength!r}"
        )
    return {stream: float(value) for stream, value in by_stream.items()}
