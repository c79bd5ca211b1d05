"""Stored tensors of one quantised linear -> its weight (out, in), in torch, on any device.

A layer is its format plus its tensors by role: `weight` and, depending on the format,
`weight_scale`, `weight_scale_2`, `weight_codebook`, `weight_s_rel`, `weight_s_channel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .gguf_blocks import decode_blocks
from .quant_formats import SUMMARY, LayerFormat

# e2m1 codes 0..15: the upper half is negative.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_GROUP, _MX_GROUP = 16, 32  # inputs per block scale


def dequantize(
    layer: LayerFormat, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight (out, in) of one layer: products in float32, rounded once to `dtype`."""
    kind, _, block = layer.name.partition(":")
    if kind == "gguf":
        return decode_blocks(block, tensors["weight"]).to(dtype)
    if kind in ("fp8_cast", "float8_e4m3fn", "float8_e5m2"):
        return _fp8(tensors, dtype)
    if kind not in _DECODERS:
        known = ", ".join([*SUMMARY, "gguf:<type>"])
        raise CheckpointError(f"quantised format {kind!r} is not supported; known: {known}")
    return _DECODERS[kind](layer, tensors).to(dtype)


def _fp8(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Every fp8 value is exact in each float type, so no float32 copy of the weight is made."""
    weight = tensors["weight"].to(dtype)
    if (scale := tensors.get("weight_scale")) is None:
        return weight
    # A scale with an axis makes the product float32; `out` rounds it once, in the same kernel.
    return torch.mul(weight, scale.float().reshape(1), out=torch.empty_like(weight))


def _nvfp4(_: LayerFormat, tensors: Mapping[str, Tensor]) -> Tensor:
    packed = tensors["weight"]  # (out, in / 2), even element in the high nibble
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)
    table = torch.tensor([*_FP4, *(-v for v in _FP4)], device=packed.device)
    values = table[codes.int()].unflatten(-1, (-1, _FP4_GROUP))  # (out, groups, 16)
    scale = untile(tensors["weight_scale"].float(), *values.shape[:2])
    return (values * (scale * tensors["weight_scale_2"]).unsqueeze(-1)).flatten(-2)


def _mxfp8(_: LayerFormat, tensors: Mapping[str, Tensor]) -> Tensor:
    values = tensors["weight"].float().unflatten(-1, (-1, _MX_GROUP))  # (out, groups, 32)
    exponent = untile(tensors["weight_scale"].view(torch.uint8), *values.shape[:2]).int()
    # 2^(e - 127) is the float with exponent field e; 2^-127 is the largest power below normals.
    scale = torch.where(exponent == 0, 1 << 22, exponent << 23).view(torch.float32)
    return (values * scale.unsqueeze(-1)).flatten(-2)


def _int8(layer: LayerFormat, tensors: Mapping[str, Tensor]) -> Tensor:
    scale = tensors["weight_scale"].float().reshape(-1, 1)  # one, or one per row
    return rotate(tensors["weight"].float(), layer.convrot_group) * scale


def _w4a8(layer: LayerFormat, tensors: Mapping[str, Tensor]) -> Tensor:
    packed = tensors["weight"].view(torch.uint8)  # (out, in / 2), even element in the low nibble
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    values = tensors["weight_codebook"][codes.int()].unflatten(-1, (-1, layer.group))
    values = values * tensors["weight_s_rel"].float().unsqueeze(-1)  # (out, groups, group)
    grid = values.flatten(-2).round().clamp(-127, 127)
    return rotate(grid, layer.convrot_group) * tensors["weight_s_channel"].reshape(-1, 1)


def untile(stored: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales (rows, columns) out of the padded 128 x 4 tiles that cuBLAS reads."""
    high, wide = -(-rows // 128), -(-columns // 4)
    tiles = stored.reshape(high, wide, 32, 4, 4)  # row tile, column tile, r, q, c
    grid = tiles.permute(0, 3, 2, 1, 4).reshape(high * 128, wide * 4)  # row 128 tile + 32 q + r
    return grid[:rows, :columns]


def rotate(x: Tensor, group: int | None) -> Tensor:
    """`x` (..., in) with each run of `group` inputs multiplied by the Hadamard-like H.

    H is orthogonal, symmetric and its own inverse. Applied to integers before their scale, all
    sums are exact in float32 (and in TF32), so no matmul setting of the host can change a weight.
    """
    if not group:
        return x
    base = torch.tensor(
        [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]],
        dtype=x.dtype,
        device=x.device,
    )
    matrix = base
    while matrix.shape[0] < group:
        matrix = torch.kron(matrix, base)
    if matrix.shape[0] != group:
        raise CheckpointError(f"convrot_groupsize must be a power of 4, got {group}")
    return (x.unflatten(-1, (-1, group)) @ (matrix / group**0.5)).flatten(-2)


_DECODERS: dict[str, Callable[[LayerFormat, Mapping[str, Tensor]], Tensor]] = {
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
    "int8_tensorwise": _int8,
    "asym_w4a8_int8": _w4a8,
}
