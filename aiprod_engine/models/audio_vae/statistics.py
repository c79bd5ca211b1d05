"""Mean and deviation of every latent feature: what makes a latent "normalised"."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PerChannelStatistics(nn.Module):
    """Converts latents (B, z, T, F) between the VAE's own scale and the normalised one.

    The stored vectors are indexed c * F + f, the feature order of audio tokens.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean-of-means", torch.zeros(features))
        self.register_buffer("std-of-means", torch.ones(features))

    def normalize(self, x: Tensor) -> Tensor:
        mean, std = self._planes(x)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        mean, std = self._planes(x)
        return x * std + mean

    def _planes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = (self.get_buffer("mean-of-means"), self.get_buffer("std-of-means"))
        # (z*F,) -> (z, 1, F): the same for every time step
        mean, std = (v.to(x.dtype).view(x.shape[1], 1, x.shape[3]) for v in vectors)
        return mean, std
