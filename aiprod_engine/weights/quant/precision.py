"""In which form a transformer's weights are held, beyond what its file says."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...errors import MismatchError
from .formats import LayerFormat
from .fp8 import has_scaled_matmul

STORED, BFLOAT16 = "as stored", "bfloat16"
FP8_STORAGE, FP8_MATMUL = "fp8 storage", "fp8 matmul"
PRECISIONS = (STORED, BFLOAT16, FP8_STORAGE, FP8_MATMUL)


def check_precision(
    precision: str, formats: Mapping[str, LayerFormat], device: torch.device
) -> None:
    """Raise where layers stored in `formats` cannot be held so, or `device` cannot compute so."""
    if precision not in PRECISIONS:
        raise MismatchError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    found = ", ".join(sorted({layer.name for layer in formats.values()}))
    if precision == FP8_STORAGE and formats:
        raise MismatchError(
            f"fp8 storage needs an unquantised file, this one holds {found}; choose as stored"
        )
    if precision != FP8_MATMUL:
        return
    if not any(multiplies_in_fp8(layer) for layer in formats.values()):
        raise MismatchError(
            "fp8 matmul needs a file with fp8 weights and scales for weight and input, this one "
            f"holds {found or 'unquantised weights'}; choose fp8 storage or as stored"
        )
    if not has_scaled_matmul(device):
        raise MismatchError(
            "fp8 matmul needs an NVIDIA device of compute capability 8.9 or newer, this is "
            f"{device}; choose as stored"
        )


def multiplies_in_fp8(layer: LayerFormat) -> bool:
    """Static fp8 needs e4m3, both scales, and a record that does not forbid it."""
    scaled = {"weight_scale", "input_scale"} <= layer.tensors.keys()
    return layer.name == "float8_e4m3fn" and scaled and not layer.full_precision
