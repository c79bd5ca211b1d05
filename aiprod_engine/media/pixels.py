"""Conversion of the decoder's output to pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def to_image(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, F, H, W) in [-1, 1] -> float32 frames (B F, H, W, 3) clamped to [0, 1]."""
    x = pixels.permute(0, 2, 3, 4, 1).flatten(0, 1)  # (B F, H, W, 3)
    return ((x.float() + 1) / 2).clamp(0, 1).contiguous()


def to_uint8(pixels: Tensor, truncate: bool = False) -> Tensor:
    """Pixels (B, 3, F, H, W) in [-1, 1] -> 8-bit frames (B F, H, W, 3).

    Rounds to nearest; `truncate` follows ltx-core 1.0, which darkens by half a step.
    """
    images = to_image(pixels)
    return (images * 255).to(torch.uint8) if truncate else to_bytes(images)


def to_bytes(images: Tensor) -> Tensor:
    """Pictures (..., H, W, C) in [0, 1] -> 8-bit (..., H, W, 3), rounded to nearest; no alpha."""
    return (images[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
