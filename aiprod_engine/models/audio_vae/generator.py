"""Mel-to-wave generator: HiFi-GAN blocks in 2.0, anti-aliased AMP blocks in 2.3 and 2.5."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import Activation1d
from .config import MEL_BINS, GeneratorConfig

_FINAL = {"tanh": torch.tanh, "clamp": lambda x: x.clamp(-1, 1), "none": lambda x: x}


def _same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel, 1, dilation * (kernel - 1) // 2, dilation)


class ResBlock(nn.Module):
    """HiFi-GAN residual block "1" (2.0): per dilation two convolutions after leaky ReLUs."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel, 1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class AMPBlock(nn.Module):
    """Residual block "AMP1" (2.3, 2.5): the same with anti-aliased periodic activations."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel, 1) for _ in dilations)
        self.acts1 = nn.ModuleList(Activation1d(channels) for _ in dilations)
        self.acts2 = nn.ModuleList(Activation1d(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        steps = zip(self.acts1, self.convs1, self.acts2, self.convs2, strict=True)
        for act1, dilated, act2, plain in steps:
            x = x + plain(act2(dilated(act1(x))))
        return x


class Generator(nn.Module):
    """Stages that each multiply the length by their rate and average parallel residual blocks."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        first, stages = config.upsample_initial_channel, len(config.upsample_rates)
        widths = [first // 2**i for i in range(stages + 1)]
        rates = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        branches = list(
            zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        block = AMPBlock if config.amp else ResBlock
        self.branches = len(branches)
        self.final = config.final
        self.conv_pre = nn.Conv1d(2 * MEL_BINS, first, 7, padding=3)
        self.act_pre = nn.Identity() if config.amp else nn.LeakyReLU(0.1)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(a, b, kernel, rate, padding=(kernel - rate) // 2)
            for (a, b), (rate, kernel) in zip(pairwise(widths), rates, strict=True)
        )
        self.resblocks = nn.ModuleList(block(w, k, d) for w in widths[1:] for k, d in branches)
        self.act_post = Activation1d(widths[-1]) if config.amp else nn.LeakyReLU(0.01)
        self.conv_post = nn.Conv1d(widths[-1], 2, 7, padding=3, bias=config.use_bias_at_final)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, 2, M, 64) -> waveform (B, 2, M * product of rates), both float32."""
        # (B, 2, M, 64) -> (B, 128, M): left bins, then right bins
        x = self.conv_pre(mel.float().transpose(2, 3).flatten(1, 2))
        for i, up in enumerate(self.ups):
            x = up(self.act_pre(x))
            blocks = self.resblocks[i * self.branches : (i + 1) * self.branches]
            x = sum(block(x) for block in blocks) / self.branches
        return _FINAL[self.final](self.conv_post(self.act_post(x)))
