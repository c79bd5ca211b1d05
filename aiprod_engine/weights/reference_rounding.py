"""The stochastic rounding of ltx-core's GPU kernel, to compare results with the reference.

Nothing in this engine loads weights through it: its noise is the same for every tensor and its
sums are not clamped. Our own rounding is `rounding.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# fp8 type -> (exponent bias, mantissa bits)
_FIELDS = {torch.float8_e4m3fn: (7, 3), torch.float8_e5m2: (15, 2)}
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def add_with_dither(weight: Tensor, delta: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(fp8, bf16) of weight + delta as the GPU kernel of ltx-core computes it, bit for bit.

    Dither of half a step either way, then bf16, then nearest fp8; e4m3 sums above 464 become NaN.
    """
    bias, mantissa = _FIELDS[weight.dtype]
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
    counter = [torch.arange(count, dtype=torch.int64, device=device)]
    counter += [torch.zeros_like(counter[0]) for _ in range(3)]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        # The 64-bit products wrap around in int64; their bits are those of unsigned arithmetic.
        first, second = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = [
            second >> 32 & _WORD ^ counter[1] ^ key[0],
            second & _WORD,
            first >> 32 & _WORD ^ counter[3] ^ key[1],
            first & _WORD,
        ]
        key = [(word + step) & _WORD for word, step in zip(key, _KEY_STEPS, strict=True)]
    word = counter[0].to(torch.int32)
    return torch.where(word < 0, -word - 1, word).float() * 4.6566127342e-10
