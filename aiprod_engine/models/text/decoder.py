"""The text decoder that Gemma 3 (LTX-2 2.0, 2.3) and Gemma 4 (2.5) share; they differ in numbers.

Encoding needs its hidden states only: no language-model head and no key-value cache; `generate.py`
adds both. Activations have the dtype of the embedding table; norms, softmax and rotary angles are
computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UnsupportedConfig


@dataclass(frozen=True)
class AttentionConfig:
    """One kind of attention layer. `window` None sees every earlier key.

    `rope_factor` divides the positions, `rotated` is the share of pairs that turn at all.
    `key_is_value` (Gemma 4, global layers): no value projection, the raw keys serve as values.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope_theta: float
    rope_factor: float = 1.0
    rotated: float = 1.0
    window: int | None = None
    key_is_value: bool = False
    value_norm: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise UnsupportedConfig(
                "query heads must be a multiple of key heads and head_dim even, found "
                f"{self.heads} query heads, {self.kv_heads} key heads, head_dim {self.head_dim}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """A text decoder; `layers` holds the attention kind of each layer.

    Norms multiply by `norm_offset` + weight: Gemma 3 stores weights around 0, Gemma 4 around 1.
    """

    vocab_size: int
    width: int
    intermediate: int
    layers: tuple[AttentionConfig, ...]
    norm_offset: float
    layer_scalar: bool
    eps: float = 1e-6

    @property
    def hidden_states(self) -> int:
        """Number of tensors that one forward yields: the embedding and one per layer."""
        return len(self.layers) + 1


@dataclass(frozen=True)
class AttentionTables:
    """What all layers of one kind share: `cos`, `sin` (T, head_dim / 2), `allowed` (B, 1, T, T)."""

    cos: Tensor
    sin: Tensor
    allowed: Tensor

    @classmethod
    def build(cls, kind: AttentionConfig, mask: Tensor, dtype: torch.dtype) -> AttentionTables:
        angles = _angles(kind, mask.shape[1], mask.device)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype), _allowed(mask, kind.window))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the pairs (i, i + head_dim / 2) of `x` (B, heads, T, head_dim)."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)

    def remember(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, T, head_dim) to attend to: here those of the same tokens."""
        return k, v


def _angles(kind: AttentionConfig, length: int, device: torch.device) -> Tensor:
    """Angle of each position and pair, (T, head_dim / 2); pairs that do not turn have angle 0."""
    pairs = int(kind.rotated * kind.head_dim / 2)
    exponents = torch.arange(0, 2 * pairs, 2, dtype=torch.float32, device=device) / kind.head_dim
    frequencies = 1.0 / kind.rope_theta**exponents / kind.rope_factor
    frequencies = F.pad(frequencies, (0, kind.head_dim // 2 - pairs))
    positions = torch.arange(length, dtype=torch.float32, device=device)
    return positions[:, None] * frequencies


def _allowed(mask: Tensor, window: int | None) -> Tensor:
    """Which key (column) each query (row) may see, (B, 1, T, T) bool; `mask` (B, T), 1 = valid.

    Every query sees itself. This matters to padded queries only: a row without any key would turn
    into NaN and, as a value of probability 0, poison the valid rows.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    distance = positions[:, None] - positions  # query - key
    near = distance >= 0
    if window is not None:
        near = near & (distance < window)
    return (near & mask.bool()[:, None, None, :]) | (distance == 0)


class GemmaNorm(nn.Module):
    """RMS norm over the last axis in float32, times `offset` + weight."""

    def __init__(self, width: int, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        gain = self.offset + self.weight.float()
        return F.rms_norm(x.float(), gain.shape, gain, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; queries and keys are normalised per head before the rotation."""

    def __init__(self, config: DecoderConfig, kind: AttentionConfig) -> None:
        super().__init__()
        inner, kv_inner = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
        self.kind, self.eps = kind, config.eps
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, kv_inner, bias=False)
        self.v_proj = None if kind.key_is_value else nn.Linear(config.width, kv_inner, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)
        self.q_norm = GemmaNorm(kind.head_dim, config.eps, config.norm_offset)
        self.k_norm = GemmaNorm(kind.head_dim, config.eps, config.norm_offset)

    def forward(self, x: Tensor, tables: AttentionTables) -> Tensor:
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        v = k if self.v_proj is None else self._heads(self.v_proj(x))
        if self.kind.value_norm:
            v = F.rms_norm(v.float(), v.shape[-1:], eps=self.eps).to(v.dtype)
        q, k = tables.rotate(self.q_norm(q)), tables.rotate(self.k_norm(k))
        k, v = tables.remember(k, v)
        groups = self.kind.heads // self.kind.kv_heads  # query head j uses key head j // groups
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=tables.allowed, scale=self.kind.scale
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, T, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.kind.head_dim)).transpose(1, 2)  # (B, heads, T, head_dim)


class MLP(nn.Module):
    def __init__(self, width: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate, bias=False)
        self.up_proj = nn.Linear(width, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP, each normalised on the way in and again before it joins the residual."""

    def __init__(self, config: DecoderConfig, kind: AttentionConfig) -> None:
        super().__init__()
        norm = partial(GemmaNorm, config.width, config.eps, config.norm_offset)
        self.self_attn = Attention(config, kind)
        self.mlp = MLP(config.width, config.intermediate)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.post_feedforward_layernorm = norm()
        scalar = nn.Parameter(torch.ones(1)) if config.layer_scalar else None
        self.register_parameter("layer_scalar", scalar)

    def forward(self, x: Tensor, tables: AttentionTables) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), tables)
        x = x + self.post_attention_layernorm(attended)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x if self.layer_scalar is None else x * self.layer_scalar


class TextDecoder(nn.Module):
    """Causal decoder that yields its hidden states one at a time, so that none has to be kept.

    `ready_blocks` is given the layers of `streamable` and yields each one when it can compute:
    whoever streams weights puts itself there. Of what `stays_home` only single rows are read.
    """

    streamable = "layers"
    stays_home = ("embed_tokens",)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, kind) for kind in config.layers)
        self.norm = GemmaNorm(config.width, config.eps, config.norm_offset)
        self.ready_blocks: Callable[[Iterable[DecoderLayer]], Iterable[DecoderLayer]] = iter

    def forward(self, ids: Tensor, mask: Tensor) -> Iterator[Tensor]:
        """Yield layers + 1 hidden states (B, T, D) for `ids` and `mask` (B, T), 1 = valid.

        The first is the scaled embedding, the last one is normalised, those between are the bare
        residual stream. Positions count from the start of the row; because the rotation is
        relative, a row without its padding gives the same states. Rows of padding mean nothing.
        """
        x = self.embed(ids)  # (B, T, D)
        kinds = self.config.layers
        tables = {kind: AttentionTables.build(kind, mask, x.dtype) for kind in set(kinds)}
        for kind, layer in zip(kinds, self.ready_blocks(self.layers), strict=True):
            yield x
            x = layer(x, tables[kind])
        yield self.norm(x)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the table times sqrt(D), rounded to the table's dtype (bf16: 62.0 for 3840).

        `ids` (B, T) -> (B, T, D) on the device of `ids`.
        """
        table = self.embed_tokens.weight  # may stay on the CPU: only the rows are moved
        x = self.embed_tokens(ids.to(table.device)).to(ids.device)
        return x * torch.tensor(math.sqrt(self.config.width), dtype=x.dtype, device=x.device)
