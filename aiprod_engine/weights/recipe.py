"""A recipe names everything that decides a network's weights; loading it is deterministic."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and how strongly it acts on what makes each stream.

    Fused into the weights, or `beside` them: dearer at every step, but another strength then
    touches no weight at all. Beside quantised weights it runs in any case.
    """

    path: str
    video: float
    audio: float
    beside: bool = False


@dataclass(frozen=True, eq=False)
class Origin:
    """What recipes of one network, that differ only in adapters and residency, have in common.

    It lives as long as any of them: who keeps a network for its recipes holds on to this.
    """

    network: tuple


@dataclass(frozen=True)
class Recipe:
    """Which network, from which files, in which dtype (None = as stored), with which adapters.

    `precision` is one of `precision.PRECISIONS`. `residency` and `device` (None = the default one)
    say where its weights live while it computes. `check_values`: refuse it where some of them
    cannot be those of a trained network.
    """

    kind: str
    files: tuple[str, ...]
    dtype: torch.dtype | None = None
    loras: tuple[LoraUse, ...] = ()
    modalities: str | None = None
    precision: str = "as stored"
    residency: str = "auto"
    device: str | None = None
    check_values: bool = True
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Take over the origin of the recipe that this one was made from, if it is the same."""
        if self.origin is None or self.origin.network != self.network:
            object.__setattr__(self, "origin", Origin(self.network))

    @property
    def network(self) -> tuple:
        """What decides the network apart from its adapters, and where it computes."""
        return (
            *(self.kind, self.files, self.dtype),
            *(self.modalities, self.precision, self.device, self.check_values),
        )

    def load(self) -> nn.Module:
        """Load the network on the CPU, strictly, as views of the mapped files where possible.

        Its adapters are not in it: see `swap.AdaptedNetwork`.
        """
        from .loading import load
        from .probe import check_plausible

        network = load(
            self.kind,
            self.files,
            dtype=self.dtype,
            modalities=self.modalities,
            precision=self.precision,
        )
        if self.check_values:
            check_plausible(network, ", ".join(Path(file).name for file in self.files))
        return network

    def with_lora(self, use: LoraUse) -> Recipe:
        """The same network with one more adapter."""
        return replace(self, loras=(*self.loras, use))

    def without_loras(self) -> Recipe:
        """The network alone, of an origin of its own."""
        return replace(self, loras=(), origin=None)


def stamp(path: str) -> tuple[int, int]:
    """Changes when the file is replaced; of a file that is not there, whoever reads it says so."""
    try:
        stat = Path(path).stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
