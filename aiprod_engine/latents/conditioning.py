"""Conditioning items for the video stream: each is an edit of a token state.

`item.apply(state, grid)` returns a new state. Items only append at the end of the sequence, in the
caller's order: images, then generated slots, then references. Strength s leaves mask 1 - s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import SizeError
from ..timing import TIME_FACTOR, pixel_frames
from ..types import SlotLayout, TokenState
from .patchify import patchify_video
from .positions import VideoGrid, in_seconds, pixel_bounds
from .rules import check_frame_index, check_latent_span, check_strength
from .state import append_generated, append_kept


class Conditioning(Protocol):
    """An edit of a token state; audio items ignore the grid."""

    def apply(self, state: TokenState, grid: VideoGrid | None = None) -> TokenState: ...


def apply_all(
    state: TokenState, items: Iterable[Conditioning], grid: VideoGrid | None = None
) -> TokenState:
    """State after all `items`, in their order; audio items need no grid."""
    for item in items:
        state = item.apply(state, grid)
    return state


@dataclass(frozen=True)
class LatentIndex:
    """Latent frames [index, index + f) of the target are `latent` (B, C, f, H, W)."""

    latent: Tensor
    index: int = 0
    strength: float = 1.0

    def apply(self, state: TokenState, grid: VideoGrid) -> TokenState:
        check_strength(self.strength)
        frames, height, width = self.latent.shape[2:]
        if (height, width) != (grid.height, grid.width):
            raise SizeError(
                f"a latent of {height} x {width} cannot replace frames of "
                f"{grid.height} x {grid.width}; encode it at the target's size"
            )
        check_latent_span(self.index, frames, grid.frames)
        per_frame = height * width
        where = slice(self.index * per_frame, (self.index + frames) * per_frame)
        clean, mask = state.clean_latent.clone(), state.denoise_mask.clone()
        clean[:, where] = patchify_video(self.latent).to(clean)
        mask[:, where] = 1.0 - self.strength
        return replace(state, clean_latent=clean, denoise_mask=mask)


@dataclass(frozen=True)
class KeyframeIndex:
    """Appends `latent` (B, C, f, H, W) as pixel frames from `frame` on.

    `clip_frames` is how many pixel frames the latent encodes, 8 (f - 1) + 1 if left out: a still
    spans exactly one frame, at whatever index. A clip at an index above 0 spans 8 frames per
    latent.
    """

    latent: Tensor
    frame: int
    strength: float = 1.0
    clip_frames: int | None = None

    def apply(self, state: TokenState, grid: VideoGrid) -> TokenState:
        check_frame_index(self.frame, grid.pixel_frames)
        frames = self.clip_frames or pixel_frames(self.latent.shape[2], grid.factors[0])
        return _append_clip(state, grid, self, self.frame, is_still=frames == 1)


@dataclass(frozen=True)
class GuideLatent:
    """Appends `latent` at a *latent* index of the clip; negative ones lie before it.

    Index 0 is a causal beginning (extending a clip), a negative one long-term context.
    """

    latent: Tensor
    index: int
    strength: float = 1.0

    def apply(self, state: TokenState, grid: VideoGrid) -> TokenState:
        factor = grid.factors[0]
        frame = factor * self.index if self.index <= 0 else 1 + factor * (self.index - 1)
        return _append_clip(state, grid, self, frame, is_still=False)


def _append_clip(
    state: TokenState,
    grid: VideoGrid,
    item: KeyframeIndex | GuideLatent,
    frame: int,
    is_still: bool,
) -> TokenState:
    check_strength(item.strength)
    bounds = pixel_bounds(*item.latent.shape[2:], grid.factors, causal=frame == 0)
    bounds[0] += frame
    if is_still:
        bounds[0, :, 1] = bounds[0, :, 0] + 1
    positions = in_seconds(bounds, grid.fps)
    return append_kept(state, patchify_video(item.latent), positions[None], item.strength)


@dataclass(frozen=True)
class GeneratedSlots:
    """Appends one generated keyframe per pixel index of `frames` (2.5).

    `seeds` (B, C, K, H, W) start them from known content, as stage 2 does from stage 1.
    """

    frames: tuple[int, ...]
    seeds: Tensor | None = None

    def apply(self, state: TokenState, grid: VideoGrid) -> TokenState:
        self._check(state, grid)
        count, cells = len(self.frames), grid.height * grid.width
        bounds = pixel_bounds(count, grid.height, grid.width, grid.factors)
        start = torch.tensor(self.frames, dtype=torch.float32).repeat_interleave(cells)
        bounds[0] = torch.stack((start, start + 1), dim=-1)
        if self.seeds is None:
            seeds = state.latent.new_zeros(1, count * cells, state.latent.shape[2])
        else:
            seeds = patchify_video(self.seeds)
        layout = SlotLayout(state.latent.shape[1], count, grid.height, grid.width)
        appended = append_generated(state, seeds, in_seconds(bounds, grid.fps)[None])
        return replace(appended, slots=layout)

    def _check(self, state: TokenState, grid: VideoGrid) -> None:
        if state.slots is not None:
            raise SizeError("all generated keyframes of a clip must be given as one list of slots")
        for frame in self.frames:
            check_frame_index(frame, grid.pixel_frames)
        if any(a >= b for a, b in pairwise(self.frames)):
            raise SizeError(f"slot positions must increase strictly, got {list(self.frames)}")
        shape = (len(self.frames), grid.height, grid.width)
        if self.seeds is not None and tuple(self.seeds.shape[2:]) != shape:
            raise SizeError(
                f"slot seeds must have {shape} frames, rows, columns, got "
                f"{tuple(self.seeds.shape[2:])}"
            )


ImagePolicy = Literal["combined", "guiding", "replacing"]


def image_item(
    latent: Tensor, frame: int, strength: float, policy: ImagePolicy = "combined"
) -> Conditioning:
    """Item for one encoded still (B, C, 1, H, W).

    `combined` replaces the first latent frame and appends all others; `guiding` (keyframe
    interpolation) appends every image; `replacing` reads `frame` as a latent index.
    """
    if policy == "replacing" or (policy == "combined" and frame == 0):
        return LatentIndex(latent, frame, strength)
    return KeyframeIndex(latent, frame, strength, clip_frames=1)


def clip_start(frame: int, factor: int = TIME_FACTOR) -> int:
    """Pixel index to which a guide clip is moved so that its latents match the target's: 8k + 1.

    Such a clip is encoded with its first frame doubled and loses its first latent frame, so that
    every latent kept spans 8 frames. Index 0 stays.
    """
    return 0 if frame <= 0 else (frame - 1) // factor * factor + 1
