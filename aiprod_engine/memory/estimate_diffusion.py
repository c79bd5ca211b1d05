"""Device bytes that the 2.5 diffusion decoder needs beside its weights; see `estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

Size = tuple[int, int, int]


def diffusion_untiled(config: Any, latent: Sequence[int], itemsize: int) -> int:
    """A whole latent (F, h, w): some five tensors of the diffusion stage."""
    law, levels = _Law(config, itemsize), list(config.levels(config.extended(latent)))
    fourth = law.elements(3, levels[3]) + law.fourth(levels[3])
    return max(law.first_three(levels), fourth, law.fifth(levels[3], levels[4])) * itemsize


def diffusion_tiled(config: Any, latent: Sequence[int], tile: Size, itemsize: int) -> int:
    """The same in tiles that read `tile` cells: the cells of the whole clip stay."""
    law, levels = _Law(config, itemsize), list(config.levels(config.extended(latent)))
    last = max(law.fourth(tile), law.fifth(tile, law.grown(tile)))
    return max(law.first_three(levels), law.elements(3, levels[3]) + last) * itemsize


@dataclass(frozen=True)
class _Law:
    """Elements that are alive together; stages are counted from 0."""

    config: Any
    itemsize: int

    def first_three(self, levels: Sequence[Size]) -> int:
        """Stages that see the whole latent, each with the upsampler behind it."""
        peaks = []
        for index in range(3):
            finer = self.elements(index + 1, levels[index + 1])
            peaks += [self.stage(index, levels[index]), self.upsample(index, levels[index], finer)]
        return max(peaks)

    def fourth(self, size: Size) -> int:
        """The stage before the diffusion stage, and its upsampler."""
        finer = self.elements(4, self.grown(size))
        return max(self.stage(3, size), self.upsample(3, size, finer))

    def fifth(self, cells: Size, size: Size) -> int:
        """Context (ghosts included), noise and blocks of the diffusion stage."""
        context = self.elements(4, self.grown(cells))
        noise = prod(size) * self.config.image_channels * self.config.patch_size**2
        return context + noise + self.stage(4, size)

    def stage(self, index: int, size: Size) -> int:
        """Input, queries, keys and values of a block with what attention copies; or its rest."""
        cells = self.elements(index, size)
        # A piece is projected, normalised and turned: in float32, which is two of bfloat16.
        projecting = (6 if self.itemsize == 4 else 11) * self.piece(index, size)
        feeding = 10 * min(self.config.PIECE, cells)
        attending = max(projecting, self.gathered(index, size))
        return max(4 * cells + attending, cells + feeding)

    def gathered(self, index: int, size: Size) -> int:
        """Keys and values of the tiles that attend together, their queries and results."""
        stage, tile = self.config.stages[index], tuple(map(min, self.config.TILE, size))
        reach, tiles = 1, 1
        for side, window, length in zip(tile, stage.window, size, strict=True):
            reach *= min(side + window - 1, length)
            # Tiles away from the borders are alike, and only these run together.
            tiles *= max(1, ceil(length / side) - 2 * ceil(window // 2 / side))
        together = min(tiles, max(1, self.config.GATHERED // (reach * stage.channels)))
        return 2 * together * (reach + prod(tile)) * stage.channels

    def upsample(self, index: int, size: Size, finer: int) -> int:
        """Input, output of `finer` elements, and a piece of the output in both orders."""
        change = self.config.upsamples[index]
        growth = prod(change.stride) * change.out_channels / change.in_channels
        pieces = int(2 * growth * self.piece(index, size))
        return self.elements(index, size) + finer + pieces

    def piece(self, index: int, size: Size) -> int:
        """Elements of the frames that a layer takes at once."""
        frame = self.elements(index, (1, *size[1:]))
        return frame * min(size[0], max(1, self.config.PIECE // frame))

    def elements(self, index: int, size: Size) -> int:
        return prod(size) * self.config.stages[index].channels

    def grown(self, cells: Size) -> Size:
        """Cells of the diffusion stage that cells of the fourth become."""
        return tuple(a * b for a, b in zip(cells, self.config.upsamples[-1].stride, strict=True))
