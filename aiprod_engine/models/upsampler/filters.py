"""Optional corrections of a latent's colours after upsampling; both are off by default."""

from __future__ import annotations

import torch
from torch import Tensor


def adain(latent: Tensor, reference: Tensor, factor: float = 1.0) -> Tensor:
    """Move each channel's mean and deviation towards those of `reference`, by `factor`.

    Both are (B, C, F, H, W) and may differ in size; a factor below 0 or above 1 extrapolates.
    """
    axes = (2, 3, 4)
    deviation, mean = torch.std_mean(latent, axes, keepdim=True)  # unbiased
    wanted_deviation, wanted_mean = torch.std_mean(reference, axes, keepdim=True)
    moved = (latent - mean) / deviation * wanted_deviation + wanted_mean
    return torch.lerp(latent, moved, factor)


def tone_map(latent: Tensor, compression: float) -> Tensor:
    """Shrink large values; `compression` from 0 (nothing) to 1."""
    strength = 0.75 * compression
    curve = torch.sigmoid(4 * strength * (latent.abs() - 1))
    return latent * (1 - 0.8 * strength * curve)
