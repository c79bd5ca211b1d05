"""What a request must satisfy; checked before any file is read.

Frame counts and sizes are `timing.check_frames` and `timing.check_size`; here are the rules that
concern conditioning and the combination of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import MismatchError, SizeError
from ..timing import SPACE_FACTOR, TIME_FACTOR, check_frames, check_size


def check_clip(frames: int, height: int, width: int, two_stage: bool = False) -> None:
    """Raise unless frames are 8k + 1 and sides multiples of 32 (64: stage 1 is exactly half)."""
    check_frames(frames)
    check_size(height, width, 2 * SPACE_FACTOR if two_stage else SPACE_FACTOR)


def check_dfr_frames(frames: int) -> None:
    """Raise unless `frames` is 8k + 1 with k >= 1: a canvas has at least one segment."""
    check_frames(frames)
    if frames <= TIME_FACTOR:
        raise SizeError(f"frames must be at least {TIME_FACTOR + 1} here, got {frames}")


def check_reference_size(height: int, width: int, downscale: int) -> None:
    """Raise unless a stage divided by the reference's downscale factor stays on the VAE's grid."""
    for name, side in (("height", height), ("width", width)):
        if side % (downscale * SPACE_FACTOR):
            raise SizeError(
                f"stage {name} must be a multiple of {downscale * SPACE_FACTOR} for a reference "
                f"with downscale factor {downscale}, got {side}"
            )


def check_strength(strength: float, name: str = "strength") -> None:
    """Raise unless 0 <= strength <= 1."""
    if not 0 <= strength <= 1:
        raise SizeError(f"{name} must lie in [0, 1], got {strength}")


def check_frame_index(frame: int, frames: int) -> None:
    """Raise unless 0 <= frame < frames, in pixel frames."""
    if not 0 <= frame < frames:
        raise SizeError(f"frame index must lie in 0 .. {frames - 1}, got {frame}")


def check_latent_span(index: int, count: int, frames: int) -> None:
    """Raise unless latent frames [index, index + count) lie inside a target of `frames`."""
    if index < 0 or index + count > frames:
        raise SizeError(
            f"{count} latent frames at latent index {index} do not fit into {frames} latent frames"
        )


def check_region(start: float, end: float) -> None:
    """Raise unless the retake window, in seconds, is not empty."""
    if not start < end:
        raise SizeError(f"the region must start before it ends, got {start} s to {end} s")


def check_keyframe_slots(transformer: Mapping[str, Any]) -> None:
    """Raise unless the `transformer` section of the metadata can generate keyframes (2.5)."""
    if transformer.get("use_keyframes_abs_pos_embedding") is not True:
        raise MismatchError(
            "generated keyframes need a 2.5 transformer (use_keyframes_abs_pos_embedding true); "
            "leave them out or load such a checkpoint"
        )


def check_duration(frames: int | None, has_duration_head: bool) -> None:
    """Raise if the length is left open and nothing can predict it (2.5 has a duration head)."""
    if frames is None and not has_duration_head:
        raise SizeError("frames may be left open only with a 2.5 duration head; state 8k + 1")


def slot_frames(request: int | Sequence[int], frames: int) -> tuple[int, ...]:
    """Pixel frames of generated keyframes: `request` evenly spread ones, or the listed ones.

    Even spreading rounds half to even and never takes the first or the last frame.
    """
    if not isinstance(request, int):
        for frame in request:
            check_frame_index(frame, frames)
        if len(set(request)) != len(request):
            raise SizeError(f"keyframe positions must be unique, got {list(request)}")
        return tuple(sorted(request))
    if request < 0 or frames < request + 2:
        raise SizeError(f"{request} keyframes need at least {request + 2} frames, got {frames}")
    return tuple(int(p) for p in np.rint(np.linspace(0, frames - 1, request + 2))[1:-1])
