"""From hidden states to the two contexts that the diffusion transformer reads.

Projection (`features.py`), then one connector per modality: the valid rows move to the front,
learned registers fill the rest, and a few bidirectional blocks run over all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SizeError
from .config import ConnectorConfig, TextConnectorConfig
from .features import SharedProjection, SplitProjection

EPS = 1e-6
THETA = 10_000.0  # fixed for connectors, whatever the transformer's own theta is


def rope_tables(positions: Tensor, config: ConnectorConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine (1, heads, T, head_dim / 2) in float32 for `positions` (T,).

    Each head has its own band of frequencies, the lowest in head 0. Published files want the grid
    in float64 and the angle, up to 15708, in float32: both roundings are part of the model.
    """
    dtype = torch.float64 if config.float64_grid else torch.float32
    steps = torch.linspace(0, 1, config.width // 2, dtype=dtype, device="cpu")
    grid = (THETA**steps * (math.pi / 2)).float().to(positions.device)  # (width / 2,)
    fractions = positions.float() / config.max_pos
    angles = (2 * fractions - 1)[:, None] * grid  # (T, width / 2)
    angles = angles.unflatten(-1, (config.heads, -1)).transpose(0, 1)[None]  # (1, H, T, d / 2)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of `x` (B, heads, T, head_dim), or (2i, 2i + 1)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, dim=-1)
    turned = a * cos - b * sin, b * cos + a * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


class Attention(nn.Module):
    """Full attention without a mask; queries and keys are normalised over all heads at once."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.interleaved = config.heads, config.interleaved
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.q_norm, self.k_norm = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.to_gate_logits = nn.Linear(width, config.heads) if config.gated else None
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(x)), self.to_v(x)  # (B, T, D)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = (_rotate(t, cos, sin, self.interleaved) for t in (q, k))  # (B, H, T, D / H)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, T, H, D / H)
        if self.to_gate_logits is not None:  # 2.3, 2.5: one gate in (0, 2) per row and head
            out = out * (2 * torch.sigmoid(self.to_gate_logits(x)))[..., None]
        return self.to_out[0](out.flatten(2))


class GeluProjection(nn.Module):
    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        inner = 4 * width
        # Index 1 is a dropout in the reference; it holds no tensors.
        self.net = nn.Sequential(
            GeluProjection(width, inner, bias), nn.Identity(), nn.Linear(inner, width, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConnectorBlock(nn.Module):
    """Attention and feed-forward, each behind an RMS norm without weight."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.attn1 = Attention(config)
        self.ff = FeedForward(config.width, config.ff_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn1(_norm(x), cos, sin)
        return x + self.ff(_norm(x))


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


class EmbeddingsConnector(nn.Module):
    """Turns the features of one modality into its context."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.learnable_registers = nn.Parameter(torch.zeros(config.registers, config.width))
        self.transformer_1d_blocks = nn.ModuleList(
            ConnectorBlock(config) for _ in range(config.num_layers)
        )

    def forward(self, features: Tensor, mask: Tensor, length: int | None = None) -> Tensor:
        """Context (B, S, D) of `features` (B, T, D) and `mask` (B, T); S as in `pack`."""
        x = self.pack(features, mask, length)
        cos, sin = rope_tables(torch.arange(x.shape[1], device=x.device), self.config)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for block in self.transformer_1d_blocks:
            x = block(x, cos, sin)
        return _norm(x)

    def pack(self, features: Tensor, mask: Tensor, length: int | None = None) -> Tensor:
        """Valid rows first, in their order, then registers: (B, S, D).

        Row p without a token is register p mod R. S is `length`, by default T, rounded up to a
        multiple of R. Registers are context like any token: nothing is masked afterwards.
        """
        rows, registers = features.shape[1], self.config.registers
        if length is not None and length < rows:
            raise SizeError(f"length must be at least the {rows} rows given, got {length}")
        size = -(-(length or rows) // registers) * registers
        valid = mask.bool()
        order = valid.int().argsort(dim=1, descending=True, stable=True)  # (B, T)
        packed = features.gather(1, order[..., None].expand_as(features))
        packed = F.pad(packed, (0, 0, 0, size - rows))  # (B, S, D)
        is_token = torch.arange(size, device=mask.device) < valid.sum(1, keepdim=True)  # (B, S)
        fill = self.learnable_registers.repeat(size // registers, 1)  # (S, D)
        return torch.where(is_token[..., None], packed, fill)


class TextConnector(nn.Module):
    """Projection and connectors; keys equal the file's without `model.diffusion_model.`."""

    def __init__(self, config: TextConnectorConfig) -> None:
        super().__init__()
        self.config = config
        video, audio = config.video, config.audio
        if config.shared:
            projection = SharedProjection(config.width, config.layers, video.width)
        else:
            audio_width = None if audio is None else audio.width
            projection = SplitProjection(config.width, config.layers, video.width, audio_width)
        self.text_embedding_projection = projection
        self.video_embeddings_connector = EmbeddingsConnector(video)
        self.audio_embeddings_connector = None if audio is None else EmbeddingsConnector(audio)

    def forward(
        self, hidden_states: Tensor, mask: Tensor, length: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `encode`, from the states stacked on the last axis, (B, T, width, layers)."""
        return self.encode(hidden_states.unbind(-1), mask, length)

    def encode(
        self, hidden_states: Iterable[Tensor], mask: Tensor, length: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Video context (B, S, D_v), audio context (B, S, D_a) and a mask of ones (B, S) int64.

        `hidden_states` are `layers` tensors (B, T, width), consumed one at a time; `mask` (B, T),
        1 = valid, at either side. Rows that are padding do not matter, so they may be left out:
        S is `length`, by default T, rounded up to a multiple of the number of registers.
        """
        video, audio = self.text_embedding_projection(hidden_states, mask)
        video = self.video_embeddings_connector(video, mask, length)
        if self.audio_embeddings_connector is None:
            audio = None
        else:
            audio = self.audio_embeddings_connector(audio, mask, length)
        return video, audio, torch.ones(video.shape[:2], dtype=torch.int64, device=video.device)
