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
    x = to_image(pixels) * 255
    return (x if truncate else x.round()).to(torch.uint8)
