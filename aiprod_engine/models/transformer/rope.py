"""Rotary position embedding: tables from positions, and their application to queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import RopeConfig


@dataclass(frozen=True)
class Rope:
    """Table of one stream's tokens; `cos`, `sin` (B, heads, T, head_dim / 2) in hidden dtype.

    Frequency j of a head turns its columns (j, j + head_dim / 2), or (2j, 2j + 1) if `interleaved`.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Rotate queries or keys `x` (B, heads, T, head_dim) in their own dtype."""
        if self.interleaved:
            x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, heads, T, head_dim / 2) each
            return torch.stack(self._turn(x1, x2), dim=-1).flatten(-2)
        return torch.cat(self._turn(*x.chunk(2, dim=-1)), dim=-1)

    def _turn(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        return x1 * self.cos - x2 * self.sin, x2 * self.cos + x1 * self.sin


def frequencies(config: RopeConfig) -> Tensor:
    """Return the (N,) float32 frequencies of one axis, pi/2 to theta pi/2, on the CPU.

    Angles reach 1.5e4, so the precision of this grid shows: published files want float64 rounded
    once, any other `frequencies_precision` computes in float32.
    """
    count = config.dim // (2 * len(config.max_pos))
    dtype = torch.float64 if config.float64_grid else torch.float32
    exponents = torch.linspace(0, 1, count, dtype=dtype, device="cpu")
    return (config.theta**exponents * (math.pi / 2)).float()


def rope_table(positions: Tensor, config: RopeConfig, dtype: torch.dtype) -> Rope:
    """Return the table of `positions` (B, axes, T, 2), [start, end) bounds in float32.

    It depends on nothing else, so a caller may keep it for as long as the positions stay.
    """
    max_pos = torch.tensor(config.max_pos, dtype=torch.float32, device="cpu")
    start, end = positions.float().unbind(-1)
    middle = ((start + end) / 2).transpose(1, 2)  # (B, T, axes)
    unit = middle / max_pos.to(positions.device) * 2 - 1  # not clamped: may leave [-1, 1]
    grid = frequencies(config).to(positions.device)
    angles = (grid[:, None] * unit[:, :, None, :]).flatten(2)  # (B, T, N axes): axis varies fastest
    # What does not divide (2 columns of the published video width) stays unrotated, in front.
    padding = (config.dim // 2 - angles.shape[-1], 0)
    return Rope(
        _split_heads(F.pad(angles.cos().to(dtype), padding, value=1.0), config.heads),
        _split_heads(F.pad(angles.sin().to(dtype), padding, value=0.0), config.heads),
        config.interleaved,
    )


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, T, head_dim / 2)
