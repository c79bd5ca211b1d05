"""Overlap tiling of decode and encode; knows pixels and latents, but no model."""

from .decode import tiled_decode
from .encode import tiled_encode
from .plan import TilePlan, TileSizes, decode_plan, encode_plan

__all__ = ["TilePlan", "TileSizes", "decode_plan", "encode_plan", "tiled_decode", "tiled_encode"]
