"""GGUF block types decoded with torch bit operations, on whatever device the bytes are.

Rows of raw bytes (..., row bytes) become float32 (..., elements). A block is a few fp16 scales
followed by packed codes; products are taken in the order of the reference decoder, so that the
result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..containers.gguf_header import BLOCKS

# Values of the 4-bit codes of IQ4_NL and IQ4_XS.
_IQ4 = (-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def decode_blocks(kind: str, raw: Tensor) -> Tensor:
    """float32 values (..., elements) of uint8 rows (..., row bytes) of the ggml type `kind`."""
    if kind not in _DECODERS:
        raise CheckpointError(f"GGUF type {kind} is not supported; known: {', '.join(_DECODERS)}")
    size = BLOCKS[kind][1]
    if raw.dtype != torch.uint8 or raw.shape[-1] % size:
        raise CheckpointError(
            f"GGUF rows of {kind} are uint8 in blocks of {size} bytes, "
            f"got {raw.dtype} {tuple(raw.shape)}"
        )
    blocks = raw.reshape(-1, size)  # (..., row bytes) -> (n, block bytes)
    return _DECODERS[kind](blocks).reshape(*raw.shape[:-1], -1)


@lru_cache(maxsize=16)
def table(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 values of 4-bit codes; kept, since each copy to a GPU would wait for it."""
    return torch.tensor(values, device=device)


def _half(raw: Tensor) -> Tensor:
    """fp16 field (n, 2 k) -> float32 (n, k); the clone gives the view its alignment."""
    return raw.clone().view(torch.float16).float()


def _shifted(raw: Tensor, width: int, mask: int) -> Tensor:
    """Fields of the last axis, one every `width` bits: (n, k) -> (n, 8 / width, k)."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=raw.device).unsqueeze(-1)
    return raw.unsqueeze(-2) >> shifts & mask


def _nibbles(raw: Tensor) -> Tensor:
    """Low nibbles, then high nibbles: (n, k) -> (n, 2 k)."""
    return _shifted(raw, 4, 15).flatten(-2)


def _fifth_bits(raw: Tensor) -> Tensor:
    """Four bytes, bit i belongs to element i: (n, 4) -> (n, 32)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return (raw.unsqueeze(-1) >> shifts & 1).flatten(-2)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * b[:, 2:].view(torch.int8)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]) + _half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6]) << 4
    return _half(b[:, :2]) * (codes.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8]) << 4
    return _half(b[:, :2]) * codes + _half(b[:, 2:4])


def _two_bits(qs: Tensor) -> Tensor:
    """2-bit codes of 64 bytes in two halves of four shifts: (n, 64) -> (n, 16, 16)."""
    return _shifted(qs.unflatten(-1, (2, 32)), 2, 3).reshape(-1, 16, 16)


def _q2_k(b: Tensor) -> Tensor:
    scales, qs, d, dmin = b[:, :16], b[:, 16:80], _half(b[:, 80:82]), _half(b[:, 82:84])
    scale, low = d * (scales & 15), dmin * (scales >> 4)  # (n, 16)
    return scale.unsqueeze(-1) * _two_bits(qs) - low.unsqueeze(-1)


def _q3_k(b: Tensor) -> Tensor:
    hmask, qs, packed, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110])
    low = _shifted(packed[:, :8], 4, 15).flatten(-2)  # (n, 16): 4 bits of each scale
    high = _shifted(packed[:, 8:], 2, 3).flatten(-2)  # (n, 16): upper 2 bits
    scales = (low | high << 4).float() - 32
    minus = 1 - _shifted(hmask, 1, 1)  # (n, 8, 32): 1 where 4 is to be subtracted
    codes = _two_bits(qs).float() - 4 * minus.reshape(-1, 16, 16).float()
    return (d * scales).unsqueeze(-1) * codes


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and minima out of 12 bytes: (n, 12) -> (n, 8) twice."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1)
    minima = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1)
    return scales, minima


def _k_blocks(b: Tensor, codes: Tensor) -> Tensor:
    """Eight runs of 32 codes (n, 8, 32) with the head that Q4_K and Q5_K share."""
    scales, minima = _scales_and_minima(b[:, 4:16])
    scale, low = _half(b[:, :2]) * scales, _half(b[:, 2:4]) * minima
    return scale.unsqueeze(-1) * codes - low.unsqueeze(-1)


def _q4_k(b: Tensor) -> Tensor:
    codes = _shifted(b[:, 16:].unflatten(-1, (4, 32)), 4, 15)  # (n, 4, 2, 32)
    return _k_blocks(b, codes.reshape(-1, 8, 32))


def _q5_k(b: Tensor) -> Tensor:
    codes = _shifted(b[:, 48:].unflatten(-1, (4, 32)), 4, 15).reshape(-1, 8, 32)
    fifth = _shifted(b[:, 16:48], 1, 1)  # (n, 8, 32)
    return _k_blocks(b, codes | fifth << 4)


def _q6_k(b: Tensor) -> Tensor:
    ql, qh, scales, d = b[:, :128], b[:, 128:192], b[:, 192:208], _half(b[:, 208:210])
    low = _shifted(ql.unflatten(-1, (2, 64)), 4, 15)  # (n, 2, 2, 64)
    high = _shifted(qh.unflatten(-1, (2, 32)), 2, 3)  # (n, 2, 4, 32)
    codes = low.reshape(-1, 16, 16) | high.reshape(-1, 16, 16) << 4
    scale = d * scales.view(torch.int8)
    return scale.unsqueeze(-1) * (codes.float() - 32)


def _iq4_values(raw: Tensor) -> Tensor:
    return table(_IQ4, raw.device)[_nibbles(raw).int()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _iq4_values(b[:, 2:])


def _iq4_xs(b: Tensor) -> Tensor:
    low = _shifted(b[:, 4:8], 4, 15).transpose(1, 2).flatten(-2)  # (n, 8): 4 bits of each scale
    high = _shifted(b[:, 2:4], 2, 3).transpose(1, 2).flatten(-2)  # (n, 8): upper 2 bits, u16
    scale = _half(b[:, :2]) * ((low | high << 4).float() - 32)
    return scale.unsqueeze(-1) * _iq4_values(b[:, 8:].unflatten(-1, (8, 16)))


_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda b: b.clone().view(torch.float32),
    "F16": _half,
    "BF16": lambda b: b.clone().view(torch.bfloat16).float(),
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
