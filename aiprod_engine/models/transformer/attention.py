"""Attention with q/k norm, rotary tables, per-head gates and perturbation; its additive masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import Rope


class Attention(nn.Module):
    """Self- or cross-attention; `gated` (2.3, 2.5) scales each head by what its query says."""

    def __init__(
        self, dim: int, context_dim: int, heads: int, head_dim: int, *, eps: float, gated: bool
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(context_dim, inner)
        self.to_v = nn.Linear(context_dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])
        self.q_norm = nn.RMSNorm(inner, eps=eps)  # over all heads together
        self.k_norm = nn.RMSNorm(inner, eps=eps)
        self.to_gate_logits = nn.Linear(dim, heads) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rope: Rope | None = None,
        key_rope: Rope | None = None,
        keep: Tensor | bool = True,
    ) -> Tensor:
        """Return (B, T, dim) for queries `x` (B, T, dim) over `context` (B, S, context_dim).

        `mask` is additive, (B, 1, T or 1, S); keys take `rope` unless `key_rope` is given. `keep`
        (B, 1, 1) replaces the result of samples with 0 by the plain values; False does so for all.
        """
        context = x if context is None else context
        if keep is False:
            out = self.to_v(context)  # (B, S, inner)
        else:
            # One after the other: fewer of them lie there together.
            q = self._split(self.q_norm(self.to_q(x)))  # (B, heads, T, head_dim)
            q = q if rope is None else rope.apply(q)
            k = self._split(self.k_norm(self.to_k(context)))
            k = k if rope is None else (key_rope or rope).apply(k)
            v = self.to_v(context)  # (B, S, inner)
            out = F.scaled_dot_product_attention(q, k, self._split(v), attn_mask=mask)
            del q, k
            out = out.transpose(1, 2).flatten(2)  # (B, T, inner)
            if keep is not True:
                out = out * keep + v * (1 - keep)
            del v
        if self.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(self.to_gate_logits(x))  # (B, T, heads)
            out = (out.unflatten(-1, (self.heads, -1)) * gates[..., None]).flatten(2)
        return self.to_out[0](out)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def text_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the additive form (B, 1, 1, L) of a text mask: integer (B, L), 1 = attend, or float.

    A floating mask is additive already.
    """
    if mask is None:
        return None
    if mask.is_floating_point():
        return mask.to(dtype)
    return ((mask.to(dtype) - 1) * torch.finfo(dtype).max)[:, None, None]


def strength_bias(strengths: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the additive form (B, 1, T, T) of self-attention `strengths` (B, T, T) in [0, 1].

    Logarithmic: a strength of 0.5 halves the softmax weight before it is normalised again.
    """
    if strengths is None:
        return None
    limits = torch.finfo(dtype)
    logs = strengths.float().clamp(min=limits.tiny).log()
    return torch.where(strengths > 0, logs, limits.min).to(dtype)[:, None]
