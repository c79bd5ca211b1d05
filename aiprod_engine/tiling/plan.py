"""Overlap tiling: how a clip is cut, and with which weights the pieces are blended.

An approximation: every usual overlap is far below the receptive field of the networks. The rules
are those of the published pipelines (ltx-core 1.0), on a grid of 8 frames and 32 x 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SizeError
from ..timing import SPACE_FACTOR, TIME_FACTOR, check_frames, check_size

# Smallest overlaps that the encode rules accept; smaller ones are raised to these.
_ENCODE_SPATIAL_OVERLAP = 64
_ENCODE_TEMPORAL_OVERLAP = 16


@dataclass(frozen=True)
class TileSizes:
    """Tile sizes in pixels and frames; None leaves the picture, or time, whole.

    The defaults are those of the current reference for the conv decoder.
    """

    spatial: int | None = 768
    spatial_overlap: int = 64
    temporal: int | None = 80
    temporal_overlap: int = 24

    def __post_init__(self) -> None:
        if self.spatial is not None:
            _check_tile("spatial", self.spatial, self.spatial_overlap, SPACE_FACTOR)
        if self.temporal is not None:
            _check_tile("temporal", self.temporal, self.temporal_overlap, TIME_FACTOR)


def _check_tile(name: str, tile: int, overlap: int, step: int) -> None:
    if tile < 2 * step or tile % step:
        raise SizeError(f"{name} tile must be a multiple of {step} from {2 * step}, got {tile}")
    if overlap < 0 or overlap % step or overlap >= tile:
        raise SizeError(
            f"{name} overlap must be a multiple of {step} below the tile of {tile}, got {overlap}"
        )


@dataclass(frozen=True, eq=False)
class Span:
    """One tile along one axis: reads [start, stop), writes [out_start, out_stop) with `mask`."""

    start: int
    stop: int
    out_start: int
    out_stop: int
    mask: Tensor  # (out_stop - out_start,) float32

    @property
    def source(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def target(self) -> slice:
        return slice(self.out_start, self.out_stop)


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Tiles are all combinations of the three axes; each time span is one group."""

    time: tuple[Span, ...]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def count(self) -> int:
        return len(self.time) * len(self.rows) * len(self.columns)

    @property
    def largest(self) -> tuple[int, int, int]:
        """Most that a tile reads along each axis."""
        axes = (self.time, self.rows, self.columns)
        return tuple(max(span.stop - span.start for span in axis) for axis in axes)

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.count} tiles: {len(self.time)} x {len(self.rows)} x {len(self.columns)}"


@dataclass(frozen=True)
class Piece:
    """Part of an axis before it is mapped to outputs; `left` and `right` are overlaps."""

    start: int
    stop: int
    left: int
    right: int


def split(length: int, size: int, overlap: int) -> list[Piece]:
    """Cut an axis into pieces of `size` (the last may be short) that overlap by `overlap`."""
    if length <= size:
        return [Piece(0, length, 0, 0)]
    step = size - overlap
    count = (length + size - 2 * overlap - 1) // step
    return [
        Piece(
            i * step,
            min(i * step + size, length),
            overlap if i else 0,
            overlap if i < count - 1 else 0,
        )
        for i in range(count)
    ]


def ramp_mask(length: int, left: int, right: int, from_zero: bool = False) -> Tensor:
    """Trapezoid (length,); the left ramp starts above zero, or at zero for `from_zero`."""
    mask = torch.ones(length)
    left, right = min(left, length), min(right, length)
    if left:
        ramp = torch.linspace(0, 1, left + 1)[:-1] if from_zero else _open_ramp(left)
        mask[:left] *= ramp
    if right:
        mask[length - right :] *= torch.linspace(1, 0, right + 2)[1:-1]
    return mask


def _open_ramp(length: int) -> Tensor:
    return torch.linspace(0, 1, length + 2)[1:-1]


def cut_mask(length: int, left: int, right: int) -> Tensor:
    """Rectangle (length,): ones between `left` and `right` zeros."""
    mask = torch.ones(length)
    mask[:left] = 0
    mask[max(length - right, 0) :] = 0
    return mask


def decode_plan(shape: Sequence[int], sizes: TileSizes) -> TilePlan:
    """Plan for a latent of `shape` (F', H', W'); spans read latents and write pixels."""
    frames, height, width = shape
    time = [Piece(0, frames, 0, 0)]
    rows, columns = [Piece(0, height, 0, 0)], [Piece(0, width, 0, 0)]
    if sizes.temporal is not None:
        overlap = sizes.temporal_overlap // TIME_FACTOR
        first, *rest = split(frames, sizes.temporal // TIME_FACTOR, overlap)
        # One more latent in front: its first frame would be decoded as the first of a clip, so it
        # gets weight zero.
        time = [first, *(Piece(p.start - 1, p.stop, p.left + 1, p.right) for p in rest)]
    if sizes.spatial is not None:
        overlap = sizes.spatial_overlap // SPACE_FACTOR
        rows, columns = (
            split(length, _proportional(sizes, length, max(height, width)), overlap)
            for length in (height, width)
        )
    return TilePlan(
        tuple(_decoded_time(piece) for piece in time),
        tuple(_decoded_space(piece) for piece in rows),
        tuple(_decoded_space(piece) for piece in columns),
    )


def _proportional(sizes: TileSizes, length: int, longest: int) -> int:
    """Tile side in latents: tiles keep the picture's aspect ratio (halves round to even)."""
    overlap = sizes.spatial_overlap // SPACE_FACTOR
    return max(2, overlap + 1, round(sizes.spatial // SPACE_FACTOR * length / longest))


def _decoded_time(piece: Piece) -> Span:
    start, stop = TIME_FACTOR * piece.start, 1 + TIME_FACTOR * (piece.stop - 1)
    left = 1 + TIME_FACTOR * (piece.left - 1) if piece.left else 0
    mask = ramp_mask(stop - start, left, TIME_FACTOR * piece.right, from_zero=True)
    return Span(piece.start, piece.stop, start, stop, mask)


def _decoded_space(piece: Piece) -> Span:
    start, stop = SPACE_FACTOR * piece.start, SPACE_FACTOR * piece.stop
    mask = ramp_mask(stop - start, SPACE_FACTOR * piece.left, SPACE_FACTOR * piece.right)
    return Span(piece.start, piece.stop, start, stop, mask)


def encode_plan(shape: Sequence[int], sizes: TileSizes) -> TilePlan:
    """Plan for pixels of `shape` (F, H, W); spans read pixels and write latents."""
    frames, height, width = shape
    check_frames(frames)
    check_size(height, width)
    time = [Piece(0, frames, 0, 0)]
    rows, columns = [Piece(0, height, 0, 0)], [Piece(0, width, 0, 0)]
    if sizes.temporal is not None:
        overlap = max(sizes.temporal_overlap, _ENCODE_TEMPORAL_OVERLAP)
        _check_tile("temporal", sizes.temporal, overlap, TIME_FACTOR)
        pieces = split(frames, sizes.temporal, overlap)
        # One more frame makes 8k + 1; the last piece has it already.
        time = [Piece(p.start, p.stop + 1, p.left, 0) for p in pieces[:-1]]
        time.append(pieces[-1])
    if sizes.spatial is not None:
        overlap = max(sizes.spatial_overlap, _ENCODE_SPATIAL_OVERLAP)
        _check_tile("spatial", sizes.spatial, overlap, SPACE_FACTOR)
        rows = split(height, sizes.spatial, overlap)
        columns = split(width, sizes.spatial, overlap)
    return TilePlan(
        tuple(_encoded_time(piece) for piece in time),
        tuple(_encoded_space(piece) for piece in rows),
        tuple(_encoded_space(piece) for piece in columns),
    )


def _encoded_time(piece: Piece) -> Span:
    start, stop = piece.start // TIME_FACTOR, (piece.stop - 1) // TIME_FACTOR + 1
    left = 1 + (piece.left - 1) // TIME_FACTOR if piece.left else 0
    return Span(piece.start, piece.stop, start, stop, cut_mask(stop - start, left, 0))


def _encoded_space(piece: Piece) -> Span:
    start, stop = piece.start // SPACE_FACTOR, piece.stop // SPACE_FACTOR
    left = max(0, piece.left // SPACE_FACTOR - 1)
    mask = cut_mask(stop - start, left, 1 if piece.right else 0)
    return Span(piece.start, piece.stop, start, stop, mask)
