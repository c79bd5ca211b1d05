"""Parts of a clip: what is kept and what is generated, in space and in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SizeError
from ..types import TokenState
from .patchify import tokens_of
from .positions import FACTORS, VideoGrid
from .rules import check_strength


@dataclass(frozen=True)
class MaskItem:
    """Where `mask` (B, F, H, W) is 1 the target is `latent` (B, C, F, H, W); elsewhere untouched.

    The mask marks what is *kept*: an inpainting mask, which marks what is regenerated, goes in as
    its complement.
    """

    latent: Tensor
    mask: Tensor
    strength: float = 1.0

    def apply(self, state: TokenState, grid: VideoGrid | None = None) -> TokenState:  # noqa: ARG002
        check_strength(self.strength)
        count = state.target_tokens
        kept = self.mask.flatten(1).unsqueeze(-1).to(state.denoise_mask)  # (B, N, 1)
        content = tokens_of(self.latent).to(state.clean_latent)
        if kept.shape[1] != count or content.shape[1] != count:
            raise SizeError(
                f"mask and latent must cover the target of {count} tokens, got {kept.shape[1]} "
                f"and {content.shape[1]}"
            )
        clean, mask = state.clean_latent[:, :count], state.denoise_mask[:, :count]
        clean = (clean * (1 - kept) + content * kept).to(content.dtype)
        mask = mask * (1 - kept) + (1.0 - self.strength) * kept
        return replace(
            state,
            clean_latent=torch.cat((clean, state.clean_latent[:, count:]), dim=1),
            denoise_mask=torch.cat((mask, state.denoise_mask[:, count:]), dim=1),
        )


@dataclass(frozen=True)
class TemporalRegion:
    """Generates every token that overlaps [start, end) seconds and keeps all others.

    Overwrites the whole mask, of either stream.
    """

    start: float
    end: float

    def apply(self, state: TokenState, grid: VideoGrid | None = None) -> TokenState:  # noqa: ARG002
        begins, ends = state.positions[:, 0].unbind(-1)  # (B, N)
        inside = (ends > self.start) & (begins < self.end)
        return replace(state, denoise_mask=inside.unsqueeze(-1).to(state.denoise_mask))


def mask_downsample(mask: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Token weights (B, frames height width) of a mask video (B, 1, F, H, W), area-averaged.

    The first frame stands alone as in the VAE; the others are averaged in equal groups.
    """
    rest = mask.shape[2] - 1
    if (frames == 1) != (rest == 0) or (rest and rest % (frames - 1)):
        raise SizeError(
            f"a mask of {rest + 1} frames does not divide into {frames} latent frames; "
            "give it as many frames as the reference"
        )
    small = F.interpolate(mask.flatten(0, 2)[:, None].float(), (height, width), mode="area")
    small = small.unflatten(0, (mask.shape[0], -1)).squeeze(2)  # (B, F, height, width)
    if frames > 1:
        groups = small[:, 1:].unflatten(1, (frames - 1, -1)).mean(dim=2)
        small = torch.cat((small[:, :1], groups), dim=1)
    return small.flatten(1)


def inpaint_mask(
    mask: Tensor, factors: Sequence[int] = FACTORS, threshold: float | None = 0.5
) -> Tensor:
    """Latent mask (B, F', H', W') of a pixel mask (B, F, H, W); 1 = regenerate.

    Averaged over each latent cell, the largest value of each group of 8 frames (frame 0 alone);
    cells above `threshold` are regenerated whole, None keeps the soft values.
    """
    time, rows, columns = factors
    frames, height, width = mask.shape[1:]
    if (frames - 1) % time or height % rows or width % columns:
        raise SizeError(
            f"a pixel mask must have {time}k + 1 frames of multiples of {rows} x {columns}, got "
            f"{frames} of {height} x {width}"
        )
    cells = F.avg_pool2d(mask.float(), (rows, columns))
    groups = cells[:, 1:].unflatten(1, ((frames - 1) // time, time)).amax(dim=2)
    cells = torch.cat((cells[:, :1], groups), dim=1)
    return cells if threshold is None else (cells > threshold).float()
