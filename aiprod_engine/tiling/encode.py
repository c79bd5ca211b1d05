"""Tiled encode: a latent put together from overlapping pieces of the picture."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .blend import blend_tiles, weighted
from .plan import Span, TilePlan


def tiled_encode(encode: Callable[[Tensor], Tensor], pixels: Tensor, plan: TilePlan) -> Tensor:
    """Return the latent (B, C, F', H', W') of pixels (B, 3, F, H, W); `encode` maps one piece."""

    def run(time: Span, row: Span, column: Span) -> Tensor:
        return encode(pixels[:, :, time.source, row.source, column.source])

    total: Tensor | None = None
    for span, weight in weighted(plan.time):
        latents = blend_tiles(run, plan, span, weight)
        if total is None:
            B, C, _, H, W = latents.shape
            total = latents.new_zeros(B, C, plan.time[-1].out_stop, H, W)
        total[:, :, span.target] += latents
    return total.to(pixels.dtype)
