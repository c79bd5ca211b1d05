"""The stochastic rounding of ltx-core's GPU kernel, to compare results with the reference.

Nothing in this engine loads weights through it: its noise is the same for every tensor and its
sums are not clamped. Our own rounding is `rounding.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import philox
from .rounding import FIELDS


def add_with_dither(weight: Tensor, delta: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(fp8, bf16) of weight + delta as the GPU kernel of ltx-core computes it, bit for bit.

    Dither of half a step either way, then bf16, then nearest fp8; e4m3 sums above 464 become NaN.
    """
    bias, mantissa = FIELDS[weight.dtype]
    total = weight.half() + delta.half()
    field = total.view(torch.int16) >> 10 & 31
    exponent = torch.where(field == 0, -14, field - 15)
    grid = (exponent + bias).clamp(0, 2 * bias + 1)
    shifted = (grid - bias - mantissa + 15).clamp(0, 31)
    step = torch.where(shifted == 0, 0.0, torch.exp2(shifted.float() - 15))
    step = torch.where(grid == 0, 2.0 ** (1 - bias - mantissa), step)
    step = torch.where(total == 0, 0.0, step)
    noise = philox_uniform(total.numel(), seed, total.device).view_as(step)
    dithered = (total.float() + (noise - 0.5) * step).bfloat16()
    return dithered.to(weight.dtype), dithered


def philox_uniform(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """First word of Philox 4x32-10 at counters 0..count-1, as float32 in [0, 1)."""
    word = philox(torch.arange(count, device=device), seed)[:, 0].to(torch.int32)
    return torch.where(word < 0, -word - 1, word).float() * 4.6566127342e-10
