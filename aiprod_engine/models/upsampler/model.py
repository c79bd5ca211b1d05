"""Latent upsampler: spatial x2 (2.0, 2.3, 2.5), spatial x1.5 (2.3), temporal x2 (all).

Group norms span the whole clip, so it can be neither tiled nor streamed without changing the
result; at latent resolution it does not need to be.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MismatchError
from .config import GROUPS, UpsamplerConfig
from .resamplers import resampler


class Statistics(Protocol):
    """What a video VAE knows about its latents; of the same model version as the upsampler."""

    def normalize(self, x: Tensor) -> Tensor: ...

    def un_normalize(self, x: Tensor) -> Tensor: ...


class Upsampler(nn.Module):
    """Normalised latent (B, C, F, H, W) -> normalised latent on the finer grid."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        mid, blocks = config.mid_channels, config.num_blocks_per_stage
        self.initial_conv = _conv(config.in_channels, mid)
        self.initial_norm = nn.GroupNorm(GROUPS, mid)
        self.res_blocks = nn.ModuleList(ResBlock(mid) for _ in range(blocks))
        self.upsampler = resampler(config)
        self.post_upsample_res_blocks = nn.ModuleList(ResBlock(mid) for _ in range(blocks))
        self.final_conv = _conv(mid, config.in_channels)

    def forward(self, latent: Tensor, statistics: Statistics) -> Tensor:
        """Return the upsampled latent; temporal x2 gives 2F - 1 latents at twice the fps."""
        raw = statistics.un_normalize(latent.to(self.initial_conv.weight.dtype))
        return statistics.normalize(self.upsample(raw)).to(latent.dtype)

    def upsample(self, raw: Tensor) -> Tensor:
        """Return the network's answer to an un-normalised latent."""
        if raw.ndim != 5 or raw.shape[1] != self.config.in_channels:
            raise MismatchError(
                f"the upsampler reads latents (B, {self.config.in_channels}, F, H, W), "
                f"got {tuple(raw.shape)}; use the files of one model version"
            )
        x = F.silu(self.initial_norm(self.initial_conv(raw)), inplace=True)
        for block in self.res_blocks:
            x = block(x)
        x = self.upsampler(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)


class ResBlock(nn.Module):
    """silu(x + norm2(conv2(silu(norm1(conv1(x)))))): the last activation follows the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = _conv(channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)), inplace=True)
        h = self.norm2(self.conv2(h))
        return F.silu(h.add_(x), inplace=True)  # our own tensor


def _conv(in_channels: int, out_channels: int) -> nn.Conv3d:
    """Zeros on all sides, time included; not causal, unlike the VAE."""
    return nn.Conv3d(in_channels, out_channels, 3, padding=1)
