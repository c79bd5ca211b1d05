"""Weighted sum of the tiles of one group of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import SizeError
from .plan import Span, TilePlan

RunTile = Callable[[Span, Span, Span], Tensor]  # time, row, column -> (B, C, F, H, W)


def weighted(spans: Sequence[Span]) -> list[tuple[Span, Tensor]]:
    """Each span of an axis with its mask over the sum of all masks: weights that add up to one.

    Tiles are all combinations of the axes, hence dividing per axis equals dividing by the sum of
    the tiles' masks.
    """
    total = torch.zeros(spans[-1].out_stop)
    for span in spans:
        total[span.target] += span.mask
    return [(span, span.mask / total[span.target].clamp(min=1e-8)) for span in spans]


def blend_tiles(run: RunTile, plan: TilePlan, time: Span, time_weight: Tensor) -> Tensor:
    """Return the sum of `run` over the tiles of one group of frames, in float32 at least."""
    height, width = plan.rows[-1].out_stop, plan.columns[-1].out_stop
    columns = weighted(plan.columns)
    total: Tensor | None = None
    for row, row_weight in weighted(plan.rows):
        for column, column_weight in columns:
            weight = time_weight[:, None, None] * row_weight[:, None] * column_weight  # (F, H, W)
            tile = run(time, row, column)
            if tile.shape[2:] != weight.shape:
                raise SizeError(
                    f"a tile must come out as {tuple(weight.shape)}, got {tuple(tile.shape[2:])}; "
                    "the plan was made for another size or model"
                )
            tile = tile.to(torch.promote_types(tile.dtype, torch.float32))
            if total is None:
                total = tile.new_zeros(*tile.shape[:2], len(time_weight), height, width)
            total[:, :, :, row.target, column.target].addcmul_(tile, weight.to(tile))
    return total
