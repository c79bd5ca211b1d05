"""Time embedding of conditioned decoders (the 0.9.x lineage; no LTX-2 file has one)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTH = 256  # of the sinusoid


class TimeEmbedder(nn.Module):
    """Scaled time () -> rows of shift and scale (rows, C)."""

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.rows = rows
        width = rows * channels
        self.timestep_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(_WIDTH, width), "linear_2": nn.Linear(width, width)}
        )

    def forward(self, time: Tensor) -> Tensor:
        layers = self.timestep_embedder
        x = _sinusoid(time).to(layers["linear_1"].weight)
        x = layers["linear_2"](F.silu(layers["linear_1"](x)))
        return x.view(self.rows, -1)


def _sinusoid(time: Tensor) -> Tensor:
    """(cos(t f), sin(t f)) with f_i = 10000^(-i / 128), in float32."""
    half = _WIDTH // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float() * torch.exp(-math.log(10_000) / half * steps)
    return torch.cat((angles.cos(), angles.sin()))
