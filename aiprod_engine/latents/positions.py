"""Where tokens lie: `[start, end)` bounds in seconds and pixels, always float32.

Midpoints and normalisation are the transformer's business. Positions are never rounded to the
model dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..timing import (
    AUDIO_HOP,
    AUDIO_RATE,
    AUDIO_TIME_FACTOR,
    SPACE_FACTOR,
    TIME_FACTOR,
    latent_frames,
    pixel_frames,
)

Factors = tuple[int, int, int]
FACTORS: Factors = (TIME_FACTOR, SPACE_FACTOR, SPACE_FACTOR)  # time, y, x; 2.0, 2.3 and 2.5


@dataclass(frozen=True)
class VideoGrid:
    """Size of the target in latent cells, its frame rate and the VAE factors (t, y, x)."""

    frames: int
    height: int
    width: int
    fps: float
    factors: Factors = FACTORS

    @classmethod
    def of(cls, latent: Tensor, fps: float, factors: Factors = FACTORS) -> VideoGrid:
        """Grid of a latent (B, C, F, H, W)."""
        return cls(*latent.shape[2:], fps, factors)

    @classmethod
    def of_pixels(
        cls, frames: int, height: int, width: int, fps: float, factors: Factors = FACTORS
    ) -> VideoGrid:
        """Grid of a clip given in pixels; sizes off the grid are floored."""
        time, rows, columns = factors
        return cls(latent_frames(frames, time), height // rows, width // columns, fps, factors)

    @property
    def pixel_frames(self) -> int:
        return pixel_frames(self.frames, self.factors[0])

    def zeros(self, batch: int, channels: int, **like: Any) -> Tensor:
        """Empty latent (batch, channels, F, H, W); `like` are torch's dtype and device."""
        return torch.zeros(batch, channels, self.frames, self.height, self.width, **like)


def cell_bounds(frames: int, height: int, width: int, patch: int = 1) -> Tensor:
    """Bounds (3, N, 2) of every token in latent cells, axes frame, row, column."""
    axes = (torch.arange(frames), torch.arange(0, height, patch), torch.arange(0, width, patch))
    starts = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, N)
    steps = torch.tensor([[1], [patch], [patch]])
    return torch.stack((starts, starts + steps), dim=-1)


def pixel_bounds(
    frames: int, height: int, width: int, factors: Sequence[int] = FACTORS, causal: bool = True
) -> Tensor:
    """Bounds (3, N, 2) in pixel frames, rows and columns, float32.

    Causal: latent frame 0 is one pixel frame [0, 1), frame k covers [8k - 7, 8k + 1).
    """
    bounds = cell_bounds(frames, height, width) * torch.tensor(factors)[:, None, None]
    if causal:
        bounds[0] = (bounds[0] + 1 - factors[0]).clamp_min(0)
    return bounds.float()


def in_seconds(bounds: Tensor, fps: float) -> Tensor:
    """The same bounds (3, N, 2) with the time axis in seconds instead of pixel frames."""
    return torch.stack((bounds[0] / fps, bounds[1], bounds[2]))


def video_positions(
    frames: int,
    height: int,
    width: int,
    fps: float,
    factors: Sequence[int] = FACTORS,
    batch: int = 1,
) -> Tensor:
    """Positions (batch, 3, N, 2) of a latent grid: seconds, pixel rows, pixel columns."""
    bounds = in_seconds(pixel_bounds(frames, height, width, factors), fps)
    return bounds.expand(batch, -1, -1, -1)


def audio_positions(count: int, shift: int = 0, causal: bool = True, batch: int = 1) -> Tensor:
    """Positions (batch, 1, count, 2) in seconds of audio latents `shift`, `shift` + 1, ...

    Causal: latent 0 covers one mel frame, [0, 0.01) s; every later one 0.04 s.
    """
    mel = torch.arange(shift, shift + count + 1) * AUDIO_TIME_FACTOR
    if causal:
        mel = (mel + 1 - AUDIO_TIME_FACTOR).clamp_min(0)
    seconds = mel.float() * AUDIO_HOP / AUDIO_RATE
    return torch.stack((seconds[:-1], seconds[1:]), dim=-1).expand(batch, 1, -1, -1)


def scale_factors(vae: Mapping[str, Any]) -> Factors:
    """VAE factors (t, y, x) from the `vae` section of a checkpoint's metadata.

    Every `compress_time*` block halves time, `compress_space*` halves rows and columns,
    `compress_all*` both; variants that also change the channels count once. Files without a block
    list have the factors of all released models.
    """
    blocks = vae.get("encoder_blocks") or vae.get("decoder_blocks")
    if not blocks:
        return FACTORS
    names = [name for name, _ in blocks]
    time = 2 ** sum(name.startswith(("compress_time", "compress_all")) for name in names)
    space = 2 ** sum(name.startswith(("compress_space", "compress_all")) for name in names)
    space *= vae.get("patch_size", 4)
    return time, space, space
