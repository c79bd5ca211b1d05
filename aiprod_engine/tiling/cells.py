"""How the last stages of a diffusion decoder are cut: on the grid of cells that they start from.

The rules are those of the reference: no tile reads further than its own cells, neighbours overlap
by what the diffusion stage can see, and both fade over the whole overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from ..errors import SizeError
from ..timing import SPACE_FACTOR, TIME_FACTOR
from .plan import Piece, Span, TilePlan, ramp_mask, split

Size = tuple[int, int, int]  # frames, rows, columns


@dataclass(frozen=True)
class CellGrid:
    """`size` cells of a clip; `ghosts` more cells in time belong to its last tile.

    A cell is `cell` frames, rows and columns of pixels, the first one a single frame. Tiles overlap
    by `overlap` cells and have at least `minimum`.
    """

    size: Size
    ghosts: int
    cell: Size
    overlap: Size
    minimum: Size

    @property
    def steps(self) -> Size:
        """Cells of a latent along each axis, of which tiles are multiples."""
        factors = (TIME_FACTOR, SPACE_FACTOR, SPACE_FACTOR)
        return tuple(max(f // side, 1) for f, side in zip(factors, self.cell, strict=True))


def cell_plan(grid: CellGrid, tile: Size) -> TilePlan:
    """Plan for tiles of `tile` cells; spans read cells and write pixels."""
    time, rows, columns = (_pieces(grid, axis, tile[axis]) for axis in range(3))
    last = time[-1]
    with_ghosts = [*time[:-1], Piece(last.start, last.stop + grid.ghosts, last.left, 0)]
    return TilePlan(
        tuple(
            _time_span(piece, whole, grid.cell[0])
            for piece, whole in zip(time, with_ghosts, strict=True)
        ),
        tuple(_space_span(piece, grid.cell[1]) for piece in rows),
        tuple(_space_span(piece, grid.cell[2]) for piece in columns),
    )


def _pieces(grid: CellGrid, axis: int, size: int) -> list[Piece]:
    length, overlap = grid.size[axis], grid.overlap[axis]
    if size < length and size < 2 * overlap:
        raise SizeError(
            f"tiles of the diffusion decoder overlap by {overlap} cells and need twice as many, "
            f"got {size}"
        )
    *pieces, last = split(length, size, overlap)
    missing = min(max(grid.minimum[axis] - (last.stop - last.start), 0), last.start)
    grown = Piece(last.start - missing, last.stop, last.left + missing if last.left else 0, 0)
    return [*pieces, grown]


def _time_span(piece: Piece, read: Piece, frames: int) -> Span:
    """The first cell of a clip is one frame, hence all others begin that much earlier."""
    lead = frames - 1
    start = max(frames * piece.start - lead, 0)
    stop = frames * piece.stop - lead
    mask = ramp_mask(stop - start, frames * piece.left, frames * piece.right)
    return Span(read.start, read.stop, start, stop, mask)


def _space_span(piece: Piece, pixels: int) -> Span:
    start, stop = pixels * piece.start, pixels * piece.stop
    mask = ramp_mask(stop - start, pixels * piece.left, pixels * piece.right)
    return Span(piece.start, piece.stop, start, stop, mask)


@dataclass(frozen=True)
class TileChoice:
    """Tiles of `tile` cells: how many, and the most cells that one `reads` along each axis."""

    tile: Size
    count: int
    reads: Size
    work: int  # cells that all tiles have together


def tile_choices(grid: CellGrid) -> list[TileChoice]:
    """Tiles in the order in which they are worth trying: least repeated work, then largest.

    The first one is the whole clip. Of the sizes that make the same number of tiles only the
    smallest is listed: it repeats the same work in less memory.
    """
    choices = []
    for axes in product(*(_axis_choices(grid, axis) for axis in range(3))):
        sizes, *pieces = zip(*axes, strict=True)
        counts, longest, cells = pieces
        choices.append(TileChoice(sizes, prod(counts), longest, prod(cells)))
    return sorted(choices, key=lambda choice: (choice.work, -prod(choice.tile)))


def _axis_choices(grid: CellGrid, axis: int) -> list[tuple[int, int, int, int]]:
    """(size, tiles, most cells read, cells of all tiles) for each possible number of tiles."""
    length, overlap, step = grid.size[axis], grid.overlap[axis], grid.steps[axis]
    least = ceil(max(2 * overlap, grid.minimum[axis]) / step) * step
    found = {}
    for size in (length, *range(least, length, step)):
        pieces = _pieces(grid, axis, size)
        cells = [piece.stop - piece.start for piece in pieces]
        ghosts = grid.ghosts if axis == 0 else 0
        longest = max(*cells, cells[-1] + ghosts)
        found.setdefault(len(cells), (size, len(cells), longest, sum(cells)))
    return list(found.values())
