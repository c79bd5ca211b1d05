"""Building blocks of the diffusion decoder.

Cells are (B, T, H, W, C). Blocks add to their input in place, and work through wide layers in
pieces, so that few tensors of full size are alive: the cells themselves, a context, and the
queries, keys and values of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DiffusionDecoderConfig, Size, StageConfig, UpsampleConfig, grown, head_parts
from .neighborhood import attend

PIECE = DiffusionDecoderConfig.PIECE
_BASE = 10_000  # of the rotary frequencies
_EPS = 1e-6


class Change(NamedTuple):
    """Scale and shift (C,) after a norm; blocks of the diffusion stage only."""

    scale: Tensor
    shift: Tensor


def rms_norm(channels: int) -> nn.RMSNorm:
    """The norm of all blocks: a weight per channel, no mean."""
    return nn.RMSNorm(channels, eps=_EPS)


def add_in_pieces(x: Tensor, source: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Add `function` of the cells of `source`, which act one by one, to `x` in place."""
    count = max(1, PIECE // source.shape[-1])
    pairs = zip(x.flatten(0, -2).split(count), source.flatten(0, -2).split(count), strict=True)
    for target, piece in pairs:
        target += function(piece)


def frames_in_pieces(x: Tensor) -> Iterator[slice]:
    """Frames of cells that a layer takes at once; at least one."""
    count = max(1, PIECE // max(x[:, :1].numel(), 1))
    for start in range(0, x.shape[1], count):
        yield slice(start, min(start + count, x.shape[1]))


class Attention(nn.Module):
    """Attention to a window of neighbours, with rotary positions counted from the first cell."""

    def __init__(self, config: StageConfig, head_dim: int) -> None:
        super().__init__()
        self.window, self.head_dim = config.window, head_dim
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.q_norm = rms_norm(head_dim)
        self.k_norm = rms_norm(head_dim)
        self.proj = nn.Linear(config.channels, config.channels)

    def forward(self, x: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        """Attended values (B, T, H, W, C) of `prepare(x)`, before `proj`."""
        return attend(*self.project(x, prepare), self.window).flatten(-2)

    def project(
        self, x: Tensor, prepare: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values (B, T, H, W, heads, d)."""
        turns = rotary_tables(x.shape[1:4], self.head_dim, x.device)
        q, k, v = (x.new_empty(*x.shape[:-1], x.shape[-1] // self.head_dim, self.head_dim)
                   for _ in range(3))  # fmt: skip
        for frames in frames_in_pieces(x):
            rows = self.qkv(prepare(x[:, frames])).unflatten(-1, (3, -1, self.head_dim))
            here = [turns[0][frames], *turns[1:]]
            q[:, frames] = rotate(self.q_norm(rows[..., 0, :, :]), here) * self.head_dim**-0.5
            k[:, frames] = rotate(self.k_norm(rows[..., 1, :, :]), here)
            v[:, frames] = rows[..., 2, :, :]
        return q, k, v


def rotary_tables(size: Size, head_dim: int, device: torch.device) -> list[Tensor]:
    """Cosine and sine (positions, 2, pairs) for each axis, in float32."""
    tables = []
    for length, channels in zip(size, head_parts(head_dim), strict=True):
        steps = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        angles = torch.arange(length, dtype=torch.float64)[:, None] * float(_BASE) ** -steps
        tables.append(torch.stack((angles.cos(), angles.sin()), dim=1).float().to(device))
    return tables


def rotate(x: Tensor, tables: list[Tensor]) -> Tensor:
    """Turn neighbouring channels of (B, T, H, W, heads, d) by their place; in float32."""
    parts = x.float().split([2 * table.shape[-1] for table in tables], dim=-1)
    turned = []
    for axis, (part, table) in enumerate(zip(parts, tables, strict=True)):
        shape = [1, 1, 1, 1, -1]  # (T, H, W, heads, pairs)
        shape[axis] = len(table)
        cos, sin = (row.view(shape) for row in table.unbind(1))
        a, b = part.unflatten(-1, (-1, 2)).unbind(-1)
        turned.append(torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2))
    return torch.cat(turned, dim=-1).to(x.dtype)


class FeedForward(nn.Module):
    """w_down(silu(w_gate x) * w_up x), four times as wide inside, rounded up to 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = -(-4 * channels // 16) * 16
        self.w_gate = nn.Linear(channels, hidden, bias=False)
        self.w_up = nn.Linear(channels, hidden, bias=False)
        self.w_down = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_down(F.silu(self.w_gate(x)).mul_(self.w_up(x)))


class Block(nn.Module):
    """x += attn(norm1(x)); x += mlp(norm2(x)), in place."""

    def __init__(self, config: StageConfig, head_dim: int) -> None:
        super().__init__()
        self.norm1 = rms_norm(config.channels)
        self.attn = Attention(config, head_dim)
        self.norm2 = rms_norm(config.channels)
        self.mlp = FeedForward(config.channels)

    def forward(self, x: Tensor) -> Tensor:
        add_in_pieces(x, self.attn(x, self.norm1), self.attn.proj)
        add_in_pieces(x, x, lambda piece: self.mlp(self.norm2(piece)))
        return x


class DiffusionBlock(Block):
    """The same with a context added first and norms that depend on the diffusion time."""

    def __init__(self, config: StageConfig, head_dim: int, has_gates: bool) -> None:
        super().__init__(config, head_dim)
        self.context_proj = nn.Linear(config.channels, config.channels)
        self.scale_shift_table = nn.Parameter(torch.zeros(7, config.channels))
        self.has_gates = has_gates
        if has_gates:
            for name in ("gate_msa", "gate_mlp", "gate_ctx"):
                self.register_parameter(name, nn.Parameter(torch.ones(config.channels)))

    def forward(self, x: Tensor, context: Tensor, modulation: Tensor) -> Tensor:
        """`modulation` (7, C): scale, shift, gate of attention, the same of the mlp, context gate.

        Released files leave the three gates unused.
        """
        scale, shift, _, *feed, _, _ = modulation + self.scale_shift_table
        first, second = Change(scale, shift), Change(*feed)
        add_in_pieces(x, context, self._gated(self.context_proj, "gate_ctx"))
        add_in_pieces(
            x,
            self.attn(x, lambda piece: changed(self.norm1(piece), first)),
            self._gated(self.attn.proj, "gate_msa"),
        )
        mlp = self._gated(self.mlp, "gate_mlp")
        add_in_pieces(x, x, lambda piece: mlp(changed(self.norm2(piece), second)))
        return x

    def _gated(self, layer: nn.Module, gate: str) -> Callable[[Tensor], Tensor]:
        return (lambda x: layer(x) * self.get_parameter(gate)) if self.has_gates else layer


def changed(x: Tensor, change: Change) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + change.scale) + change.shift


class Upsample(nn.Module):
    """Linear layer whose channels become neighbours: b t h w (c p1 p2 p3) -> finer cells."""

    def __init__(self, config: UpsampleConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.out_channels = config.out_channels
        parts = config.stride[0] * config.stride[1] * config.stride[2]
        self.proj = nn.Linear(config.in_channels, config.out_channels * parts)

    def forward(self, x: Tensor, leads: bool = True) -> Tensor:
        """Finer cells; doubling time drops the first frame of a clip, which `leads` says it is."""
        p1, p2, p3 = self.stride
        B, T, H, W, _ = x.shape
        dropped = (p1 - 1) * leads
        out = x.new_empty(B, *grown((T, H, W), self.stride, leads), self.out_channels)
        for frames in frames_in_pieces(x):
            y = self.proj(x[:, frames]).unflatten(-1, (-1, p1, p2, p3))
            y = y.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(5, 6).flatten(3, 4).flatten(1, 2)
            # (B, t p1, H p2, W p3, C)
            start = frames.start * p1 - dropped
            out[:, max(start, 0) : start + y.shape[1]] = y[:, max(-start, 0) :]
        return out
