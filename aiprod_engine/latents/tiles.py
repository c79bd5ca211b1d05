"""Overlapping tiles of a latent grid, each sampled on its own and blended by trapezoid windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisTile:
    """Cells [start, end) of one axis; the window rises over `left` and falls over `right` cells."""

    start: int
    end: int
    left: int
    right: int

    def window(self) -> Tensor:
        """Weights (end - start,): ramps i / (v + 1), 1 between; neighbours sum to 1."""
        rising = torch.arange(1, self.end - self.start + 1, dtype=torch.float32)
        falling = rising.flip(0)
        rising = (rising / (self.left + 1)).clamp_max(1)
        return rising * (falling / (self.right + 1)).clamp_max(1)


def latent_tiles(size: int, count: int, overlap: int) -> tuple[AxisTile, ...]:
    """`count` tiles of one axis; each starts `overlap` cells before the end of the previous one.

    The overlap is limited to size - 2, and an axis shorter than 3 is one tile.
    """
    if count <= 1 or size < 3:
        return (AxisTile(0, size, 0, 0),)
    overlap = min(overlap, size - 2)
    length, longer = divmod(size + (count - 1) * overlap, count)
    tiles, start = [], 0
    for i in range(count):
        end = start + length + (i < longer)
        left, right = overlap if i else 0, overlap if i < count - 1 else 0
        tiles.append(AxisTile(start, end, left, right))
        start = end - overlap
    return tuple(tiles)


@dataclass(frozen=True)
class LatentTile:
    """A box of a latent grid (F, H, W)."""

    time: AxisTile
    rows: AxisTile
    columns: AxisTile

    def crop(self, latent: Tensor, downscale: int = 1) -> Tensor:
        """The box of a latent (B, C, F, H, W); `downscale` for a smaller reference."""

        def part(axis: AxisTile, d: int = 1) -> slice:
            return slice(axis.start // d, axis.end // d)

        return latent[
            ..., part(self.time), part(self.rows, downscale), part(self.columns, downscale)
        ]

    def window(self) -> Tensor:
        """Weights (F, H, W) of the box."""
        time, rows, columns = (a.window() for a in (self.time, self.rows, self.columns))
        return time[:, None, None] * rows[:, None] * columns


def grid_tiles(
    shape: Sequence[int], counts: Sequence[int] = (2, 2, 2), overlaps: Sequence[int] = (8, 6, 6)
) -> list[LatentTile]:
    """Boxes of a grid (F, H, W), time slowest; the defaults are those of HDR stage 2 (2.3)."""
    axes = [latent_tiles(*axis) for axis in zip(shape, counts, overlaps, strict=True)]
    return [LatentTile(*axis_tiles) for axis_tiles in product(*axes)]


def blend_tiles(
    tiles: Sequence[LatentTile], parts: Iterable[Tensor], shape: Sequence[int]
) -> Tensor:
    """Latent of `shape` (B, C, F, H, W) from one `part` per tile; normalised by the weight sum."""
    total = weights = None
    for tile, part in zip(tiles, parts, strict=True):
        window = tile.window().to(part.device)
        if total is None:
            total = torch.zeros(*shape, device=part.device)
            weights = torch.zeros(*shape[2:], device=part.device)
        tile.crop(total).add_(part.float() * window)
        tile.crop(weights).add_(window)
    return (total / weights).to(part.dtype)
