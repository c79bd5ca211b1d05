"""Time embedding: of conditioned decoders (0.9.x lineage) and of the 2.5 diffusion decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINUSOID = 256  # width


class TimeEmbedder(nn.Module):
    """Scaled time () -> rows of shift and scale (rows, C)."""

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.rows = rows
        width = rows * channels
        self.timestep_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(SINUSOID, width), "linear_2": nn.Linear(width, width)}
        )

    def forward(self, time: Tensor) -> Tensor:
        layers = self.timestep_embedder
        x = sinusoid(time).to(layers["linear_1"].weight)
        x = layers["linear_2"](F.silu(layers["linear_1"](x)))
        return x.view(self.rows, -1)


def sinusoid(time: Tensor) -> Tensor:
    """(cos(t f), sin(t f)) with f_i = 10000^(-i / 128), in float32."""
    half = SINUSOID // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float() * torch.exp(-math.log(10_000) / half * steps)
    return torch.cat((angles.cos(), angles.sin()))
