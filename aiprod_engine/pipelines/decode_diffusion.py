"""Ways to decode with the 2.5 diffusion decoder: the whole clip, or tiles of its last stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..memory.estimate_diffusion import diffusion_tiled, diffusion_untiled
from ..models.diffusion_vae import (
    DECODE_SEED,
    DiffusionDecoder,
    DiffusionDecoderConfig,
    decode_noise,
)
from ..tiling import CellGrid, blended_chunks, cell_plan, tile_choices
from ..tiling.plan import Span

Size = tuple[int, int, int]

_LESS = 0.9  # of the memory of one way that the next may take


@dataclass(frozen=True)
class DiffusionWay:
    """One way to decode a clip: at once, or in tiles of `tile` cells (frames, rows, columns)."""

    name: str
    activations: int
    tile: Size | None = None
    seed: int = DECODE_SEED

    def chunks(self, decoder: DiffusionDecoder, video: Tensor) -> Iterator[Tensor]:
        """Pixels (B, 3, f, H, W) of a latent (B, C, F, h, w) in time order; tiles on the CPU.

        The noise is that of the whole clip, so that tiles agree where they overlap.
        """
        if self.tile is None:
            yield decoder(video, seed=self.seed)
            return
        latent, config = video.shape[2:], decoder.config
        plan = cell_plan(cell_grid(config, latent), self.tile)
        _, height, width = config.canvas(config.extended(latent))
        cells = decoder.cells(video)

        @lru_cache(maxsize=1)
        def noise(start: int, stop: int) -> Tensor:
            frame = (config.image_channels, height, width)
            return decode_noise(self.seed, range(start, stop), frame, decoder.like.dtype)

        def run(time: Span, row: Span, column: Span) -> Tensor:
            tile = noise(time.out_start, time.out_stop)[..., row.target, column.target]
            source = cells[:, time.source, row.source, column.source]
            return decoder.finish(source, tile.to(decoder.like), leads=not time.start).cpu()

        for chunk in blended_chunks(run, plan, video.dtype):
            yield decoder.cropped(chunk, latent)

    def restart(self, _: DiffusionDecoderConfig, emitted: int) -> tuple[int, int]:
        """Latent to begin again at, and frames to discard: the first stages see the whole clip."""
        return 0, emitted

    def on_cpu(self) -> DiffusionWay:
        """The same tiles, which go on with what the device left."""
        return self


def diffusion_ways(
    config: DiffusionDecoderConfig, latent: Sequence[int], itemsize: int, tiling: str, seed: int
) -> tuple[DiffusionWay, ...]:
    """Ways to decode a latent (F, h, w): the whole clip, then tiles that repeat more and more work.

    `tiled` begins with tiles, where the clip is large enough to be cut. Each way takes clearly less
    memory than the one before it, and the last one the least that is possible.
    """
    grid = cell_grid(config, latent)
    needed = diffusion_untiled(config, latent, itemsize)
    ways = [DiffusionWay("all at once", needed, None, seed)]
    for choice in tile_choices(grid)[1:]:  # the first one is the whole clip
        needed = diffusion_tiled(config, latent, choice.reads, itemsize)
        if needed < ways[-1].activations:
            name = f"{choice.count} overlapping tiles, an approximation"
            ways.append(DiffusionWay(name, needed, choice.tile, seed))
    kept = ways[:1]
    for way in ways[1:]:
        if way is ways[-1] or way.activations < _LESS * kept[-1].activations:
            kept.append(way)
    return tuple(kept[1:] if tiling == "tiled" and len(kept) > 1 else kept)


def cell_grid(config: DiffusionDecoderConfig, latent: Sequence[int]) -> CellGrid:
    """Cells of the fourth stage of a latent (F, h, w), which is extended where it is too small."""
    *_, (frames, rows, columns), _ = config.levels(config.extended(latent))
    ghosts = config.ghost_cells
    size = (frames - ghosts, rows, columns)
    return CellGrid(size, ghosts, config.cell, config.tile_overlap, config.tile_minimum)
