"""What an IC-LoRA says about its reference video; it travels with the model, not with settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...errors import CheckpointError, MismatchError
from ..containers.header import short

_SPATIAL = ("reference_downscale_factor", "reference_spatial_scale_factor")
_TEMPORAL = ("reference_temporal_scale_factor",)
_HDR = ("hdr_transform", "use_hdr_transform")
_LARGEST = 64


@dataclass(frozen=True)
class Reference:
    """Size of the target over that of the reference video, in space and in frame rate.

    `hdr_transform` "logc3": decode through LogC3. `is_ic_lora`: a file said any of this.
    """

    spatial_factor: int = 1
    temporal_factor: int = 1
    hdr_transform: str | None = None
    is_ic_lora: bool = False


def read_reference(metadata: Mapping[str, str], file: str) -> Reference:
    """Reference settings of one LoRA file, neutral ones where its metadata is silent."""
    spatial, temporal = (
        _agreed(key, [_factor(metadata[name], name, file) for name in names if name in metadata])
        for key, names in (("reference_spatial_scale_factor", _SPATIAL), (_TEMPORAL[0], _TEMPORAL))
    )
    transforms = [_transform(metadata[name], file) for name in _HDR if name in metadata]
    stated = any(name in metadata for name in (*_SPATIAL, *_TEMPORAL, *_HDR))
    return Reference(spatial, temporal, next(filter(None, transforms), None), stated)


def merge_references(references: Iterable[Reference]) -> Reference:
    """Settings of a stack of LoRAs: 1 is neutral, two different other factors are an error."""
    found = list(references)
    return Reference(
        _agreed("reference_downscale_factor", [r.spatial_factor for r in found]),
        _agreed("reference_temporal_scale_factor", [r.temporal_factor for r in found]),
        next((r.hdr_transform for r in found if r.hdr_transform), None),
        any(r.is_ic_lora for r in found),
    )


def _agreed(key: str, factors: list[int]) -> int:
    other = sorted({factor for factor in factors if factor != 1})
    if len(other) > 1:
        raise MismatchError(
            f"IC-LoRAs of one stack must agree on {key}, found {other}; use one of them at a time"
        )
    return other[0] if other else 1


def _factor(text: str, key: str, file: str) -> int:
    try:
        value = float(text.strip().strip('"'))
    except ValueError:
        value = 0.0
    if not (value.is_integer() and 1 <= value <= _LARGEST):
        raise CheckpointError(f"{file}: {key} is {short(text)}; an integer in 1..{_LARGEST} needed")
    return int(value)


def _transform(text: str, file: str) -> str | None:
    word = text.strip().strip('"').lower()
    if word in ("", "false", "none", "null", "0"):
        return None
    if word in ("logc3", "true", "1"):
        return "logc3"
    raise CheckpointError(f"{file}: hdr_transform is {short(text)}; known: logc3")
