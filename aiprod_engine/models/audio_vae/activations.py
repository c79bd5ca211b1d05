"""Alias-free periodic activation of the 2.3/2.5 vocoders: upsample, SnakeBeta, downsample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 12  # Kaiser-windowed sinc for ratio 2; stored in the checkpoint, bf16-rounded
RATIO = 2


def upsample(x: Tensor, kernel: Tensor, ratio: int, pad: int, crop: tuple[int, int]) -> Tensor:
    """x (B, C, L) with `ratio` samples per sample; every channel meets the kernel (1, 1, taps)."""
    channels = x.shape[1]
    x = F.pad(x, (pad, pad), mode="replicate")
    kernel = kernel.to(x.dtype).expand(channels, 1, -1)
    x = ratio * F.conv_transpose1d(x, kernel, stride=ratio, groups=channels)
    return x[..., crop[0] : x.shape[-1] - crop[1]]


class SnakeBeta(nn.Module):
    """x + sin(x e^alpha)^2 / e^beta per channel; both parameters are stored as logarithms."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency, magnitude = (p.exp()[:, None] for p in (self.alpha, self.beta))  # (C, 1)
        return x + torch.sin(x * frequency).pow(2) / (magnitude + 1e-9)


class Upsampler(nn.Module):
    """(B, C, L) -> (B, C, 2L) with the stored filter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.zeros(1, 1, TAPS))

    def forward(self, x: Tensor) -> Tensor:
        pad = TAPS // RATIO - 1
        crop = pad * RATIO + (TAPS - RATIO) // 2  # 15 samples on each side
        return upsample(x, self.filter, RATIO, pad, (crop, crop))


class LowPass(nn.Module):
    """(B, C, 2L) -> (B, C, L) with the stored filter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.zeros(1, 1, TAPS))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        kernel = self.filter.to(x.dtype).expand(channels, 1, -1)
        return F.conv1d(x, kernel, stride=RATIO, groups=channels)


class Downsampler(nn.Module):
    """Holds the low-pass under its checkpoint name."""

    def __init__(self):
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        return self.lowpass(x)


class Activation1d(nn.Module):
    """SnakeBeta at twice the rate, so that its harmonics do not fold back; x (B, C, L)."""

    def __init__(self, channels: int):
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsampler()
        self.downsample = Downsampler()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))
