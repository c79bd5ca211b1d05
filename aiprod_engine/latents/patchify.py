"""Latent grids to token sequences and back; all models use patch 1."""

from __future__ import annotations

from torch import Tensor


def patchify_video(latent: Tensor, patch: int = 1) -> Tensor:
    """Tokens (B, N, C p p) of a latent (B, C, F, H, W), ordered frame, row, column.

    Features are ordered channel, patch row, patch column; time is never patched.
    """
    cells = latent.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # (B, C, F, H/p, p, W/p, p)
    return cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def unpatchify_video(
    tokens: Tensor, frames: int, height: int, width: int, patch: int = 1
) -> Tensor:
    """Latent (B, C, frames, height, width) of tokens (B, N, C p p); sizes in latent cells."""
    cells = tokens.unflatten(1, (frames, height // patch, width // patch))
    cells = cells.unflatten(-1, (-1, patch, patch))  # (B, F, H/p, W/p, C, p, p)
    return cells.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


def patchify_audio(latent: Tensor) -> Tensor:
    """Tokens (B, T, C bins) of a latent (B, C, T, bins); features ordered channel, bin."""
    return latent.transpose(1, 2).flatten(2)


def unpatchify_audio(tokens: Tensor, channels: int, bins: int) -> Tensor:
    """Latent (B, channels, T, bins) of tokens (B, T, channels bins)."""
    return tokens.unflatten(2, (channels, bins)).transpose(1, 2)


def tokens_of(latent: Tensor) -> Tensor:
    """Tokens (B, N, C) of a video latent (five axes) or an audio latent (four axes)."""
    return patchify_video(latent) if latent.ndim == 5 else patchify_audio(latent)
