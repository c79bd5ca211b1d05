"""The two-layer GELU networks: the feed-forward of a block and the caption projection of 2.0."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GeluProjection(nn.Module):
    """Linear layer followed by the tanh approximation of GELU."""

    def __init__(self, dim: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Widens (B, T, dim) four times and back; the video stream of 2.5 has no biases."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        # The checkpoint numbers its layers 0 and 2.
        self.net = nn.Sequential(
            GeluProjection(dim, 4 * dim, bias), nn.Identity(), nn.Linear(4 * dim, dim, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CaptionProjection(nn.Module):
    """Maps text features (B, L, channels) to the width of a stream (2.0 only)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, caption: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(caption), approximate="tanh"))
