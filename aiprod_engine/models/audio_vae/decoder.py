"""Audio VAE decoder: normalised latent to log-mel spectrogram (2.0, 2.3 and 2.5 alike)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...timing import AUDIO_TIME_FACTOR, mel_frames
from .config import AudioVAEConfig
from .layers import CausalConv2d, Level, Middle, Upsample, make_norm
from .statistics import PerChannelStatistics


class UpLevel(Level):
    """The blocks of one resolution, then the step up (none at level 0)."""

    def __init__(self, config: AudioVAEConfig, level: int):
        below = min(level + 1, len(config.ch_mult) - 1)  # the middle is as wide as the last level
        super().__init__(config, level, config.width(below), config.num_res_blocks + 1)
        self.upsample = (
            Upsample(config.width(level), config.causality_axis) if level else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class AudioDecoder(nn.Module):
    """Decoder; `up.N` counts resolution levels, the highest N runs first."""

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        self.config = config
        norm, axis, width = config.norm_type, config.causality_axis, config.width(-1)
        self.conv_in = CausalConv2d(config.z_channels, width, 3, axis)
        self.mid = Middle(width, norm, axis, config.mid_block_add_attention)
        self.up = nn.ModuleList(UpLevel(config, i) for i in range(len(config.ch_mult)))
        self.norm_out = make_norm(norm, config.width(0))
        self.conv_out = CausalConv2d(config.width(0), config.out_ch, 3, axis)
        self.per_channel_statistics = PerChannelStatistics(config.statistics_length)

    def forward(self, latent: Tensor) -> Tensor:
        """Normalised latent (B, z, T, bins / 4) -> log-mel (B, out_ch, 4T - 3, bins)."""
        x = self.mid(self.conv_in(self.per_channel_statistics.denormalize(latent)))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return self._fit(x, latent.shape[2])

    def _fit(self, mel: Tensor, latents: int) -> Tensor:
        """Crop, or zero-pad at the end, to the stated mel bins and the frames of `latents`."""
        is_causal = self.config.causality_axis != "none"
        frames = mel_frames(latents) if is_causal else AUDIO_TIME_FACTOR * latents
        bins = self.config.mel_bins
        mel = mel[:, :, :frames, :bins]
        return F.pad(mel, (0, bins - mel.shape[3], 0, frames - mel.shape[2]))
