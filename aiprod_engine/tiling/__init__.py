"""Overlap tiling of decode and encode; knows pixels and latents, but no model."""

from .cells import CellGrid, cell_plan, tile_choices
from .decode import blended_chunks, tiled_decode
from .encode import tiled_encode
from .plan import TilePlan, TileSizes, decode_plan, encode_plan

__all__ = [
    "CellGrid",
    "TilePlan",
    "TileSizes",
    "blended_chunks",
    "cell_plan",
    "decode_plan",
    "encode_plan",
    "tile_choices",
    "tiled_decode",
    "tiled_encode",
]
