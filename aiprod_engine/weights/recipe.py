"""A recipe names everything that decides a network's weights; loading it is deterministic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and how strongly it acts on what makes each stream."""

    path: str
    video: float
    audio: float


@dataclass(frozen=True)
class Recipe:
    """Which network, from which files, in which dtype (None = as stored), with which adapters.

    `precision` is one of `precision.PRECISIONS`. `residency` and `device` (None = the default one)
    say where its weights live while it computes.
    """

    kind: str
    files: tuple[str, ...]
    dtype: torch.dtype | None = None
    loras: tuple[LoraUse, ...] = ()
    modalities: str | None = None
    precision: str = "as stored"
    residency: str = "auto"
    device: str | None = None

    def load(self) -> nn.Module:
        """Load the network on the CPU, strictly, as views of the mapped files where possible.

        Raises as well where the values cannot be those of a trained network.
        """
        from .loading import load
        from .probe import check_plausible

        network = load(
            self.kind,
            self.files,
            dtype=self.dtype,
            loras=[(use.path, {"video": use.video, "audio": use.audio}) for use in self.loras],
            modalities=self.modalities,
            precision=self.precision,
        )
        check_plausible(network, ", ".join(Path(file).name for file in self.files))
        return network

    def with_lora(self, use: LoraUse) -> Recipe:
        """The same network with one more adapter."""
        return replace(self, loras=(*self.loras, use))
