"""A recipe names everything that decides a network's weights; loading it is deterministic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """Which network, from which files, in which dtype (None = as stored), with which adapters."""

    kind: str
    files: tuple[str, ...]
    dtype: torch.dtype | None = None
    loras: tuple[tuple[str, float], ...] = ()
    modalities: str | None = None

    def load(self) -> nn.Module:
        """Load the network on the CPU, strictly, as views of the mapped files where possible."""
        from .load import load

        return load(
            self.kind,
            self.files,
            dtype=self.dtype,
            loras=self.loras,
            modalities=self.modalities,
        )
