"""Stochastic rounding to fp8: an update smaller than half a step survives on average.

Weights that already lie on the fp8 grid lose small updates under nearest rounding (18 % of an
update of 2 % of sigma survives at sigma 0.02); unbiased rounding keeps all of it in expectation.

All of it is integer arithmetic on the bits of float32, and the noise of an element depends on the
seed and its position alone: device, kernel and chunking cannot change a bit of the result.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .philox import philox

# fp8 type -> (exponent bias, mantissa bits)
FIELDS = {torch.float8_e4m3fn: (7, 3), torch.float8_e5m2: (15, 2)}
_PIECE = 1 << 18  # elements rounded at a time, a multiple of 4: int64 temporaries stay in cache
_NAN = 127  # a code in both types
_log = logging.getLogger(__name__)

Grid = tuple[int, int, int]
Rounder = Callable[[Tensor, Grid, int], Tensor]


def layer_seed(key: str, recipe: str = "") -> int:
    """63-bit seed of a layer, from its canonical key and the recipe: own noise, repeatable."""
    digest = hashlib.blake2b(f"{recipe}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def round_stochastically(x: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """fp8 tensor whose expectation is `x` clamped to the finite range; grid values stay as is.

    On CUDA one Triton kernel does it, where Triton runs; the bits are the same.
    """
    rounder = _kernel(x.device) or round_in_torch
    return rounder(x.detach().flatten(), fp8_grid(dtype), seed).view(dtype).view(x.shape)


def fp8_grid(dtype: torch.dtype) -> Grid:
    """(exponent field of the smallest normal value, bits of mantissa to drop, largest value).

    In terms of float32; the largest value by its bits.
    """
    bias, mantissa = FIELDS[dtype]
    largest = torch.tensor(torch.finfo(dtype).max).view(torch.int32)
    return 127 + 1 - bias, 23 - mantissa, int(largest)


def round_in_torch(x: Tensor, grid: Grid, seed: int) -> Tensor:
    """Codes (uint8) of `x` (count,)."""
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    for start in range(0, len(x), _PIECE):
        piece = slice(start, start + _PIECE)
        codes[piece] = _round(x[piece].float(), grid, _noise(start, len(x[piece]), seed, x.device))
    return codes


def _noise(start: int, count: int, seed: int, device: torch.device) -> Tensor:
    """Uniform 32-bit integers: element n gets word n % 4 of counter n // 4."""
    counters = torch.arange(start // 4, -(-(start + count) // 4), device=device)
    return philox(counters, seed).flatten()[:count]


def _round(x: Tensor, grid: Grid, noise: Tensor) -> Tensor:
    """Codes of float32 `x`: its magnitude in steps of the grid, plus noise below 1, cut off."""
    smallest, dropped, largest = grid
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    finite = magnitude.clamp(max=largest)
    exponent = finite >> 23
    # The grid is as coarse as at its smallest normal value from there to zero. More than 56
    # places leave nothing; neither do float32's own subnormals, which have no leading one.
    places = (dropped + (smallest - exponent).clamp(min=0)).clamp(max=56)
    significand = (finite & 0x7FFFFF | 0x800000).long()
    steps = (significand << 32 >> places) + noise >> 32
    # A normal value's leading one adds 1 to the exponent field of its code.
    codes = steps + ((exponent - smallest).clamp(min=0) << 23 - dropped)
    codes = torch.where(magnitude > 0x7F800000, _NAN, codes)
    return (codes | bits >> 24 & 128).to(torch.uint8)  # the sign


@lru_cache(maxsize=8)
def _kernel(device: torch.device) -> Rounder | None:
    """The Triton kernel if it runs: that needs the package, a supported GPU and a C compiler."""
    if device.type != "cuda":
        return None
    try:
        from .rounding_triton import round_in_triton

        round_in_triton(torch.zeros(1, device=device), fp8_grid(torch.float8_e4m3fn), 0)
    except Exception as reason:  # whatever stops a compiler: the same bits come without it
        _log.info("stochastic rounding runs in torch, Triton cannot: %s", reason)
        return None
    return round_in_triton
