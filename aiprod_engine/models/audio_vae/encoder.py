"""Audio VAE encoder: log-mel spectrogram to normalised latent (2.0, 2.3 and 2.5 alike)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import AudioVAEConfig
from .layers import CausalConv2d, Downsample, Level, Middle, make_norm
from .statistics import PerChannelStatistics


class DownLevel(Level):
    """The blocks of one resolution, then the step down (none at the last level)."""

    def __init__(self, config: AudioVAEConfig, level: int):
        entry = config.width(level - 1) if level else config.ch
        super().__init__(config, level, entry, config.num_res_blocks)
        is_last = level == len(config.ch_mult) - 1
        self.downsample = (
            nn.Identity() if is_last else Downsample(config.width(level), config.causality_axis)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class AudioEncoder(nn.Module):
    """Deterministic encoder: the stored log-variance half of the output is never used."""

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        self.config = config
        norm, axis, width = config.norm_type, config.causality_axis, config.width(-1)
        self.conv_in = CausalConv2d(config.in_channels, config.ch, 3, axis)
        self.down = nn.ModuleList(DownLevel(config, i) for i in range(len(config.ch_mult)))
        self.mid = Middle(width, norm, axis, config.mid_block_add_attention)
        self.norm_out = make_norm(norm, width)
        self.conv_out = CausalConv2d(width, 2 * config.z_channels, 3, axis)
        self.per_channel_statistics = PerChannelStatistics(config.statistics_length)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, 2, M, bins) -> normalised latent (B, z, ceil(M / 4), bins / 4)."""
        x = self.conv_in(mel)
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        mean = x[:, : self.config.z_channels]
        return self.per_channel_statistics.normalize(mean)
