"""The four ways in which an upsampler changes the grid; tensors are (B, C, F, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import RATIOS, UpsamplerConfig


def resampler(config: UpsamplerConfig) -> nn.Module:
    """Return the module that the checkpoint calls `upsampler`."""
    if config.spatial_upsample and config.temporal_upsample:
        return ShuffleClip(config.mid_channels, (2, 2, 2))  # unreleased
    if config.temporal_upsample:
        return ShuffleClip(config.mid_channels, (2, 1, 1))
    if config.rational_resampler:
        return RationalResampler(config.mid_channels, config.spatial_scale)
    return ShuffleFrames(config.mid_channels)


def shuffle(x: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """b (c p1 p2 p3) f h w -> b c (f p1) (h p2) (w p3)."""
    x = x.unflatten(1, (-1, *factors))  # (B, C, p1, p2, p3, F, H, W)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ShuffleFrames(nn.Sequential):
    """Twice the rows and columns, frame by frame (2.3 and 2.5 spatial x2)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return _clips(F.pixel_shuffle(self[0](_frames(x)), 2), len(x))


class ShuffleClip(nn.Sequential):
    """Twice the frames, less the first one: F -> 2F - 1 (temporal x2)."""

    def __init__(self, channels: int, factors: tuple[int, int, int]) -> None:
        parts = factors[0] * factors[1] * factors[2]
        super().__init__(nn.Conv3d(channels, parts * channels, 3, padding=1))
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(self[0](x), self.factors)[:, :, 1:]


class RationalResampler(nn.Module):
    """Shuffle up by the numerator, blur and skip by the denominator (2.0 x2, 2.3 x1.5)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.up, down = RATIOS[scale]
        self.conv = nn.Conv2d(channels, self.up**2 * channels, 3, padding=1)
        self.blur_down = BlurDown(down)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.conv(_frames(x)), self.up)
        return _clips(self.blur_down(y), len(x))


class BlurDown(nn.Module):
    """Binomial 5 x 5 blur with zero padding, keeping each `stride`-th row and column.

    The kernel is stored in the file even where the stride is 1 and nothing is blurred (2.0 x2).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
        self.register_buffer("kernel", (row[:, None] * row / 256)[None, None])  # (1, 1, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 5, 5)
        return F.conv2d(x, kernel, stride=self.stride, padding=2, groups=channels)


def _frames(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)


def _clips(x: Tensor, batch: int) -> Tensor:
    return x.unflatten(0, (batch, -1)).transpose(1, 2)  # (B, C, F, H, W)
