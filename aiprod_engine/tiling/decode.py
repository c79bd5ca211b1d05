"""Tiled decode: pixel chunks in time order, blended from overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .blend import RunTile, blend_tiles, weighted
from .plan import Span, TilePlan


def tiled_decode(
    decode: Callable[[Tensor], Tensor], latent: Tensor, plan: TilePlan
) -> Iterator[Tensor]:
    """Yield chunks (B, 3, t, H, W) of the decoded latent (B, C, F', H', W'), each frame once.

    `decode` maps a piece of the latent to its pixels.
    """

    def run(time: Span, row: Span, column: Span) -> Tensor:
        return decode(latent[:, :, time.source, row.source, column.source])

    return blended_chunks(run, plan, latent.dtype)


def blended_chunks(run: RunTile, plan: TilePlan, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield chunks (B, 3, t, H, W) in time order; `run` makes the pixels of a tile.

    Between chunks only the frames that later tiles still change are kept.
    """
    ends = [span.out_start for span in plan.time[1:]] + [plan.time[-1].out_stop]
    unfinished: Tensor | None = None
    for (span, weight), end in zip(weighted(plan.time), ends, strict=True):
        frames = blend_tiles(run, plan, span, weight)
        if unfinished is not None:
            frames[:, :, : unfinished.shape[2]] += unfinished
        done = end - span.out_start
        unfinished = frames[:, :, done:].clone()
        finished = [frames[:, :, :done].to(dtype)]
        del frames  # not kept while the next group is decoded
        if done:  # a stride of one latent finishes nothing with the first tile
            yield finished.pop()
