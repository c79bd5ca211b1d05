"""Clips longer than one canvas: cutting to length and joining."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SizeError


def conform_length(latent: Tensor, frames: int, dim: int = 2) -> Tensor:
    """`latent` cut, or padded at the end with zeros, to `frames` along `dim`."""
    missing = frames - latent.shape[dim]
    if missing <= 0:
        return latent.narrow(dim, 0, frames)
    shape = list(latent.shape)
    shape[dim] = missing
    return torch.cat((latent, latent.new_zeros(shape)), dim=dim)


def temporal_subsample(video: Tensor, factor: int, dim: int = 2) -> Tensor:
    """Frame 0, then every `factor`-th frame from frame 1 on (references at a lower rate)."""
    frames = [0, *range(1, video.shape[dim], factor)]
    return video.index_select(dim, torch.tensor(frames, device=video.device))


def overlap_blend(first: Tensor, second: Tensor, overlap: int, dim: int = 2) -> Tensor:
    """`first` and `second` joined with `overlap` cells in common, blended linearly along `dim`."""
    if not 0 <= overlap <= min(first.shape[dim], second.shape[dim]):
        raise SizeError(
            f"overlap must lie between 0 and the shorter part, got {overlap} for parts of "
            f"{first.shape[dim]} and {second.shape[dim]}"
        )
    kept = first.shape[dim] - overlap
    weights = torch.linspace(1, 0, overlap + 2, device=first.device)[1:-1]
    weights = weights.view(-1, *[1] * (first.ndim - dim % first.ndim - 1))
    seam = weights * first.narrow(dim, kept, overlap)
    seam = seam + (1 - weights) * second.narrow(dim, 0, overlap)
    rest = second.narrow(dim, overlap, second.shape[dim] - overlap)
    return torch.cat((first.narrow(dim, 0, kept), seam.to(first.dtype), rest), dim=dim)


def splice(old: Tensor, new: Tensor, overlap: int) -> Tensor:
    """`old` extended by `new`, whose first `overlap` latents repeat the end of `old`.

    The first of them is dropped: it encodes one frame in the new clip but eight in the old one.
    """
    return overlap_blend(old, new[:, :, 1:], overlap - 1)
