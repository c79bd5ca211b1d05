"""Adaptive layer norm: a noise level becomes rows that shift, scale and gate the tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FREQUENCIES = 128  # cosines and as many sines


def sinusoid(t: Tensor) -> Tensor:
    """Return the float32 features (..., 256) of `t` (...): all cosines, then all sines.

    `t` runs up to 1000, so one rounding of a frequency moves an angle by 6e-5: keep the order.
    """
    steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device=t.device)
    grid = torch.exp(-math.log(10_000) * steps / _FREQUENCIES)
    angles = t.float()[..., None] * grid  # (..., 128)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer MLP over the sinusoid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * _FREQUENCIES, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class AdaLN(nn.Module):
    """Maps noise levels to `rows` modulation rows of width `dim`."""

    def __init__(self, dim: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(dim)})
        self.linear = nn.Linear(dim, rows * dim)

    def forward(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return rows (B, T, rows, D) and embedding (B, T, D) of `t` (B, T), already times 1000."""
        embedded = self.emb["timestep_embedder"](sinusoid(t).to(dtype))
        modulation = self.linear(F.silu(embedded))
        return modulation.unflatten(-1, (self.rows, -1)), embedded


def add_rows(table: Tensor, modulation: Tensor | None, rows: range) -> list[Tensor]:
    """Return the effective `rows`, each broadcastable to (B, T, D): table + modulation.

    `table` (rows, D) is stored in float32 and cast *before* the addition. Without `modulation`
    (B, T or 1, rows, D) the table stands alone.
    """
    if modulation is None:
        return [table[i] for i in rows]
    table = table.to(modulation.dtype)
    return [table[i] + modulation[:, :, i] for i in rows]


def row_of_tokens(row: Tensor, levels: Tensor | None, part: slice = slice(None)) -> Tensor:
    """Return what a row, (B, n, D) or (D,), holds for the tokens of `part`: one for all or each.

    `levels` (B, T) says which of the n every token takes; without it n is 1 or that of the tokens.
    """
    if levels is not None:
        return row.gather(1, levels[:, part, None].expand(-1, -1, row.shape[-1]))
    return row if row.dim() == 1 or row.shape[1] == 1 else row[:, part]


def modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    levels: Tensor | None = None,
    part: slice = slice(None),
) -> Tensor:
    """Return x * (1 + scale) + shift for `x` (B, T, D), the tokens of `part`; rows as above."""
    x = x * (1 + row_of_tokens(scale, levels, part))
    return x + row_of_tokens(shift, levels, part)
