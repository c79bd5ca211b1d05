"""Building blocks of the audio VAE on a (time, mel) plane: height = time, width = mel."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .config import AudioVAEConfig

# Zeros before a stride-2 convolution, (left, right, top, bottom) per causality axis.
_DOWNSAMPLE_PADDING = {
    "height": (0, 1, 2, 0),
    "width": (2, 0, 0, 1),
    "width-compatibility": (1, 0, 0, 1),
    "none": (0, 1, 0, 1),
}


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class CausalConv2d(nn.Module):
    """Zero-padded Conv2d that looks only backwards along the causality axis."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        axis: str,
        stride: int = 1,
        dilation: int | tuple[int, int] = 1,
    ):
        super().__init__()
        high, wide = ((k - 1) * d for k, d in zip(_pair(kernel), _pair(dilation), strict=True))
        top = high if axis == "height" else high // 2
        left = wide if axis in ("width", "width-compatibility") else wide // 2
        self.padding = (left, wide - left, top, high - top)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class PixelNorm(nn.Module):
    """Divide each (time, mel) position by the RMS of its channels; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(dim=1, keepdim=True) + 1e-6).sqrt()


def make_norm(norm_type: str, channels: int) -> nn.Module:
    """PixelNorm (published), or GroupNorm with 32 groups."""
    return PixelNorm() if norm_type == "pixel" else nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut (1x1 where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, norm_type: str, axis: str):
        super().__init__()
        self.norm1 = make_norm(norm_type, in_channels)
        self.conv1 = CausalConv2d(in_channels, out_channels, 3, axis)
        self.norm2 = make_norm(norm_type, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels, 3, axis)
        self.nin_shortcut = (
            CausalConv2d(in_channels, out_channels, 1, axis)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head attention over all (time, mel) positions; in no published checkpoint."""

    def __init__(self, channels: int, norm_type: str):
        super().__init__()
        self.norm = make_norm(norm_type, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, C, H, W) -> (B, 1, H*W, C)
        q, k, v = (p(h).flatten(2).transpose(1, 2)[:, None] for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        # (B, 1, H*W, C) -> (B, C, H, W)
        return x + self.proj_out(h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the config has it."""

    def __init__(self, config: AudioVAEConfig, level: int, entry_width: int, blocks: int):
        super().__init__()
        norm, width = config.norm_type, config.width(level)
        widths = [entry_width] + [width] * blocks
        self.block = nn.ModuleList(
            ResnetBlock(a, b, norm, config.causality_axis) for a, b in pairwise(widths)
        )
        attend = config.has_attention(level)
        self.attn = nn.ModuleList(
            AttnBlock(width, norm) if attend else nn.Identity() for _ in self.block
        )

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        return x


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, norm_type: str, axis: str, attention: bool):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm_type, axis)
        self.attn_1 = AttnBlock(channels, norm_type) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, norm_type, axis)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve both axes: time to ceil(H / 2) when causal in time, mel to floor(W / 2)."""

    def __init__(self, channels: int, axis: str):
        super().__init__()
        self.padding = _DOWNSAMPLE_PADDING[axis]
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Double both axes, then drop the first row (height) or column (width): H -> 2H - 1."""

    def __init__(self, channels: int, axis: str):
        super().__init__()
        self.first_row, self.first_column = int(axis == "height"), int(axis == "width")
        self.conv = CausalConv2d(channels, channels, 3, axis)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x[:, :, self.first_row :, self.first_column :]
