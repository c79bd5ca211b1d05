"""Stored tensors of one quantised linear -> its weight (out, in), in torch, on any device.

A layer is its format plus its tensors by role: `weight` and, depending on the format,
`weight_scale`, `weight_scale_2`, `weight_codebook`, `weight_s_rel`, `weight_s_channel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import torch
from torch import Tensor

from ...errors import CheckpointError
from .formats import SUMMARY, LayerFormat
from .gguf_blocks import decode_blocks, table

# e2m1 codes 0..15: the upper half is negative.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_FP4_GROUP, _MX_GROUP = 16, 32  # inputs per block scale
_PIECE = 4 << 20  # packed bytes decoded at a time: float32 temporaries stay near 256 MB

Tensors = Mapping[str, Tensor]
# Tensors with one entry per row, and the function that decodes a run of rows to float32.
Rows = tuple[tuple[Tensor, ...], Callable[..., Tensor]]


def dequantize(layer: LayerFormat, tensors: Tensors, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight (out, in) of one layer: products in float32, rounded once to `dtype`."""
    kind, _, block = layer.name.partition(":")
    if kind in ("fp8_cast", "float8_e4m3fn", "float8_e5m2"):
        return _fp8(tensors, dtype)
    if kind == "gguf":
        sources, decode = (torch.atleast_2d(tensors["weight"]),), partial(decode_blocks, block)
    elif kind in _FORMATS:
        sources, decode = _FORMATS[kind](layer, tensors)
    else:
        known = ", ".join([*SUMMARY, "gguf:<type>"])
        raise CheckpointError(f"quantised format {kind!r} is not supported; known: {known}")
    step = max(1, _PIECE // sources[0].shape[1])
    runs = zip(*(source.split(step) for source in sources), strict=True)
    return torch.cat([decode(*run).to(dtype) for run in runs])


def _fp8(tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """Every fp8 value is exact in each float type, so no float32 copy of the weight is made."""
    weight = tensors["weight"].to(dtype)
    if (scale := tensors.get("weight_scale")) is None:
        return weight
    # A scale with an axis makes the product float32; `out` rounds it once, in the same kernel.
    return torch.mul(weight, scale.float().reshape(1), out=torch.empty_like(weight))


def _nvfp4(_: LayerFormat, tensors: Tensors) -> Rows:
    weight = tensors["weight"]  # (out, in / 2), even element in the high nibble
    scale = untile(tensors["weight_scale"].float(), len(weight), weight.shape[1] * 2 // _FP4_GROUP)

    def decode(packed: Tensor, scale: Tensor) -> Tensor:
        codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)
        values = table(_FP4, packed.device)[codes.int()]
        return _grouped(values, scale)

    return (weight, scale * tensors["weight_scale_2"]), decode


def _mxfp8(_: LayerFormat, tensors: Tensors) -> Rows:
    weight = tensors["weight"]
    stored = tensors["weight_scale"].view(torch.uint8)
    exponent = untile(stored, len(weight), weight.shape[1] // _MX_GROUP).int()
    # 2^(e - 127) is the float with exponent field e; 2^-127 is the largest power below normals.
    scale = torch.where(exponent == 0, 1 << 22, exponent << 23).view(torch.float32)
    return (weight, scale), lambda values, scale: _grouped(values.float(), scale)


def _int8(layer: LayerFormat, tensors: Tensors) -> Rows:
    weight = tensors["weight"]
    scale = tensors["weight_scale"].float().reshape(-1, 1).expand(len(weight), 1)  # one, or per row
    return (weight, scale), lambda q, scale: rotate(q.float(), layer.convrot_group) * scale


def _w4a8(layer: LayerFormat, tensors: Tensors) -> Rows:
    def decode(packed: Tensor, relative: Tensor, scale: Tensor) -> Tensor:
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)  # low nibble first
        values = _grouped(tensors["weight_codebook"][codes.int()], relative.float())
        return rotate(values.round().clamp(-127, 127), layer.convrot_group) * scale

    weight = tensors["weight"].view(torch.uint8)  # (out, in / 2)
    return (weight, tensors["weight_s_rel"], tensors["weight_s_channel"].reshape(-1, 1)), decode


def _grouped(values: Tensor, scale: Tensor) -> Tensor:
    """`values` (rows, in) times `scale` (rows, groups), each for a run of inputs."""
    return (values.unflatten(-1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(-2)


def untile(stored: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales (rows, columns) out of the padded 128 x 4 tiles that cuBLAS reads."""
    high, wide = -(-rows // 128), -(-columns // 4)
    tiles = stored.reshape(high, wide, 32, 4, 4)  # row tile, column tile, r, q, c
    grid = tiles.permute(0, 3, 2, 1, 4).reshape(high * 128, wide * 4)  # row 128 tile + 32 q + r
    return grid[:rows, :columns]


def rotate(x: Tensor, group: int | None) -> Tensor:
    """`x` (..., in) with each run of `group` inputs multiplied by the orthogonal H of that size.

    Applied to integers before their scale: all sums are exact in float32, and in TF32, so no
    matmul setting of the host can change a weight.
    """
    if not group:
        return x
    return (x.unflatten(-1, (-1, group)) @ _rotation(group, x.device)).flatten(-2)


@lru_cache(maxsize=16)
def _rotation(group: int, device: torch.device) -> Tensor:
    """H: Kronecker power of a 4 x 4 sign matrix over sqrt(group); symmetric, its own inverse."""
    base = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = torch.ones(1, 1)
    while len(matrix) < group:
        matrix = torch.kron(matrix, base)
    if len(matrix) != group:
        raise CheckpointError(f"convrot_groupsize must be a power of 4, got {group}")
    return (matrix / group**0.5).to(device)


_FORMATS: dict[str, Callable[[LayerFormat, Tensors], Rows]] = {
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
    "int8_tensorwise": _int8,
    "asym_w4a8_int8": _w4a8,
}
