"""Mean and deviation per latent channel: the border between raw and normalised latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PerChannelStatistics(nn.Module):
    """Normalised latents have about unit variance per channel; tensors are (B, C, F, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The checkpoint's names contain dashes, so these are reached by `get_buffer`.
        self.register_buffer("mean-of-means", torch.zeros(channels))
        self.register_buffer("std-of-means", torch.ones(channels))

    def normalize(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std, computed in the dtype of `x`."""
        return (x - self._column("mean-of-means", x)) / self._column("std-of-means", x)

    def un_normalize(self, x: Tensor) -> Tensor:
        """Return x * std + mean, computed in the dtype of `x`."""
        return x * self._column("std-of-means", x) + self._column("mean-of-means", x)

    def _column(self, name: str, x: Tensor) -> Tensor:
        return self.get_buffer(name).to(x).view(-1, 1, 1, 1)  # (C, 1, 1, 1)
