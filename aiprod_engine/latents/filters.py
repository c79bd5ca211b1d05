"""Optional corrections of a latent's colours; all are off by default.

Drift between the parts of a long clip, or after an upscale, is what they are for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SizeError

_FLAT = 1e-12  # a channel without any spread moves to the reference's mean instead of to NaN


def adain(
    latent: Tensor, reference: Tensor, factor: float = 1.0, per_frame: bool = False
) -> Tensor:
    """`latent` (B, C, F, H, W) moved by `factor` towards the mean and spread of `reference`.

    Statistics per sample and channel over (F, H, W) with unbiased deviation; `per_frame` over
    (H, W), frame i against frame i of the reference.
    """
    axes = (3, 4) if per_frame else (2, 3, 4)
    if per_frame:
        if reference.shape[2] < latent.shape[2]:
            raise SizeError(
                f"AdaIN per frame needs a reference frame for each of {latent.shape[2]} latent "
                f"frames, got {reference.shape[2]}"
            )
        reference = reference[:, :, : latent.shape[2]]
    x = latent.float()
    std, mean = torch.std_mean(x, axes, keepdim=True)
    target_std, target_mean = torch.std_mean(reference.float(), axes, keepdim=True)
    moved = (x - mean) / std.clamp_min(_FLAT) * target_std + target_mean
    return ((1 - factor) * x + factor * moved).to(latent.dtype)


def tone_map(latent: Tensor, compression: float) -> Tensor:
    """Shrink large values; `compression` from 0 (nothing) to 1."""
    strength = 0.75 * compression
    curve = torch.sigmoid(4 * strength * (latent.abs() - 1))
    return latent * (1 - 0.8 * strength * curve)
