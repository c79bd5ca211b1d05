"""One LoRA file against one model: which tensors it changes, and how; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError
from ..containers.header import Header, short
from ..containers.mapped import MappedFile
from ..containers.read import read_header
from .adapters import Adapter, Dora, FullDelta, Kronecker, LowRank
from .ic_lora import Reference, read_reference
from .names import ModuleNames, is_text_side, split_key
from .report import LoraReport, targets


@dataclass(frozen=True, eq=False)
class LoraFile:
    """The adapters of one file by tensor key of the model, the report and the reference."""

    adapters: Mapping[str, tuple[Adapter, ...]]
    report: LoraReport
    reference: Reference


def read_lora(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> LoraFile:
    """Match a file to a model whose tensors have `shapes` (key -> shape).

    Raises for a file that no engine could apply (refused tensors, half a pair); that it does not
    fit this model is only reported.
    """
    header = read_header(path)
    names = ModuleNames(key.removesuffix(".weight") for key in shapes if key.endswith(".weight"))
    roles, unmatched, elsewhere = _sort_keys(header, names)
    builder = _Builder(header, roles)
    adapters: dict[str, tuple[Adapter, ...]] = {}
    mis_shaped = []
    for module in roles:
        for leaf, adapter in builder.adapters_of(module):
            key, expected = f"{module}.{leaf}", shapes.get(f"{module}.{leaf}")
            if expected is None:
                unmatched.append(roles[module]["diff_b"])
            elif tuple(expected) != adapter.shape:
                mis_shaped.append(
                    f"{key} is {tuple(expected)} here, the file changes {adapter.shape}"
                )
            else:
                adapters[key] = (*adapters.get(key, ()), adapter)
    unmatched += [key for module in roles for key in builder.orphans(module)]
    ranks = [a.rank for found in adapters.values() for a in found if a.rank is not None]
    report = LoraReport(
        header.path.name,
        tuple(dict.fromkeys(key.rpartition(".")[0] for key in adapters)),
        tuple(unmatched),
        tuple(elsewhere),
        tuple(mis_shaped),
        (min(ranks), max(ranks)) if ranks else None,
        sum(len(shape) == 2 for key, shape in shapes.items() if key.endswith(".weight")),
        targets(header),
    )
    return LoraFile(adapters, report, read_reference(header.metadata, header.path.name))


def _sort_keys(
    header: Header, names: ModuleNames
) -> tuple[dict[str, dict[str, str]], list[str], list[str]]:
    """({module: {role: key}}, keys without a target, keys of another component)."""
    roles: dict[str, dict[str, str]] = {}
    unmatched, elsewhere = [], []
    is_text = any(map(is_text_side, names.modules))
    for key in header.tensors:
        base, role = split_key(key) or (key, None)
        if role == "refused":
            raise CheckpointError(
                f"{header.path.name}: {short(key)} replaces or reshapes a weight, which is not "
                "supported; export the adapter as plain low-rank pairs"
            )
        module = names.find(base) if role else None
        if module is None:
            (unmatched if is_text_side(base) == is_text else elsewhere).append(key)
        elif (other := roles.setdefault(module, {}).setdefault(role, key)) != key:
            raise CheckpointError(
                f"{header.path.name}: {short(key)} and {short(other)} name the same tensor"
            )
    return roles, unmatched, elsewhere


class _Builder:
    """Turns the tensors of one module into adapters."""

    def __init__(self, header: Header, roles: Mapping[str, Mapping[str, str]]):
        self.file, self.roles, self.name = MappedFile(header), roles, header.path.name
        self.has_alphas = any(key.endswith(".alpha") for key in header.tensors)
        self.metadata_scale = _metadata_scale(header)

    def adapters_of(self, module: str) -> list[tuple[str, Adapter]]:
        """(leaf, adapter) pairs; leaf is "weight" or "bias"."""
        roles = self.roles[module]
        found: list[tuple[str, Adapter]] = []
        pair, kronecker = self._pair(module), self._kronecker(module)
        if pair is not None and kronecker is not None:
            raise self._bad(module, "holds a low-rank pair and a Kronecker product")
        inner = pair if pair is not None else kronecker
        magnitude = next((r for r in ("magnitude", "dora_scale") if r in roles), None)
        if inner is not None:
            found.append(("weight", self._dora(module, inner, magnitude) if magnitude else inner))
        elif magnitude:
            raise self._bad(module, "has a DoRA magnitude but no low-rank pair")
        if "diff" in roles:
            found.append(("weight", FullDelta(self._tensor(module, "diff"))))
        if "diff_b" in roles:
            found.append(("bias", FullDelta(self._tensor(module, "diff_b"))))
        return found

    def orphans(self, module: str) -> list[str]:
        """Keys of a module that change nothing: an alpha alone."""
        roles = self.roles[module]
        return list(roles.values()) if set(roles) == {"alpha"} else []

    def _pair(self, module: str) -> LowRank | None:
        roles = self.roles[module]
        if "down" not in roles and "up" not in roles:
            return None
        if "down" not in roles or "up" not in roles:
            raise self._bad(module, f"has no {'lora_A' if 'up' in roles else 'lora_B'}")
        down, up = self._tensor(module, "down"), self._tensor(module, "up")
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise self._bad(
                module,
                f"has factors {tuple(down.shape)} and {tuple(up.shape)} that do not multiply",
            )
        scale = self.metadata_scale if not self.has_alphas else self._alpha(module, len(down))
        return LowRank(down, up, scale)

    def _kronecker(self, module: str) -> Kronecker | None:
        if not any(role.startswith("lokr_") for role in self.roles[module]):
            return None
        first, second = (self._part(module, f"lokr_{part}") for part in ("w1", "w2"))
        factored = next((part for part in (second, first) if len(part) == 2), None)
        scale = 1.0 if factored is None else self._alpha(module, factored[1].shape[0])
        return Kronecker(first, second, scale)

    def _part(self, module: str, name: str) -> tuple[Tensor, ...]:
        """One side of a LoKr: stored whole, or as a product of two."""
        roles = self.roles[module]
        spelled = (name,) if name in roles else (f"{name}_a", f"{name}_b")
        if not all(role in roles for role in spelled):
            raise self._bad(module, f"has no {name}")
        part = tuple(self._tensor(module, role) for role in spelled)
        if any(t.ndim != 2 for t in part) or (len(part) == 2 and part[0].shape[1] != len(part[1])):
            raise self._bad(module, f"has a {name} that is no matrix or product of two")
        return part

    def _dora(self, module: str, inner: LowRank | Kronecker, role: str) -> Dora:
        magnitude = self._tensor(module, role)
        rows, columns = inner.shape
        if role == "dora_scale" and magnitude.shape == (1, columns):
            return Dora(inner, magnitude, "merged_columns")
        if magnitude.numel() != rows:
            raise self._bad(module, f"has a magnitude of shape {tuple(magnitude.shape)}")
        return Dora(inner, magnitude, "merged_rows" if role == "magnitude" else "original_rows")

    def _alpha(self, module: str, rank: int) -> float:
        """alpha / rank; 1 where the module has no alpha."""
        if "alpha" not in self.roles[module]:
            return 1.0
        alpha = self._tensor(module, "alpha")
        if alpha.numel() != 1 or not isfinite(value := float(alpha.reshape(()))):
            raise self._bad(module, "has an alpha that is no finite number")
        return value / rank

    def _tensor(self, module: str, role: str) -> Tensor:
        tensor = self.file.tensor(self.roles[module][role])
        if role != "alpha" and not tensor.is_floating_point():
            raise self._bad(module, f"is stored as {tensor.dtype}; floating point is needed")
        return tensor

    def _bad(self, module: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: the adapter of {short(module)} {why}")


def _metadata_scale(header: Header) -> float:
    """lora_alpha / lora_rank, both from the metadata: distilled files clip the rank per layer."""
    alpha, rank = (header.metadata.get(f"lora_{name}") for name in ("alpha", "rank"))
    if alpha is None or rank is None:
        return 1.0
    try:
        scale = float(alpha) / float(rank)
    except (ValueError, ZeroDivisionError):
        scale = float("nan")
    if not isfinite(scale):
        raise CheckpointError(
            f"{header.path.name}: lora_alpha {short(alpha)} over lora_rank {short(rank)} "
            "is no finite number"
        )
    return scale
