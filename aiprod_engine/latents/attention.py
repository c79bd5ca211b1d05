"""Self-attention strengths between the target and appended groups of tokens.

Strength 1 is full attention, 0 none. Each appended group attends to itself and, with its own
strength, to the target in both directions; weighted groups do not see each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SizeError
from ..types import TokenState
from .conditioning import Conditioning
from .positions import VideoGrid
from .state import extended_mask


@dataclass(frozen=True)
class AttentionStrength:
    """Appends what `item` appends, seen by the target with `weight`.

    `weight` in [0, 1]: one number, one per appended token (n), or (B, n).
    """

    item: Conditioning
    weight: float | Tensor

    def __post_init__(self) -> None:
        low, high = torch.as_tensor(self.weight).aminmax()
        if not (low >= 0 and high <= 1):
            raise SizeError(
                f"attention strength must lie in [0, 1], got {float(low)} to {float(high)}"
            )

    def apply(self, state: TokenState, grid: VideoGrid | None = None) -> TokenState:
        applied = self.item.apply(state, grid)
        count = applied.latent.shape[1] - state.latent.shape[1]
        if count == 0:
            return applied
        return replace(applied, attention_mask=extended_mask(state, self.weight, count))


def with_attention(
    item: Conditioning, strength: float = 1.0, token_weights: Tensor | None = None
) -> Conditioning:
    """`item` seen with `strength`, times `token_weights` (B, n) of a mask video if there is one.

    Full strength without a mask video needs no attention mask, so the item stays as it is.
    """
    if token_weights is None:
        return item if strength == 1 else AttentionStrength(item, strength)
    return AttentionStrength(item, token_weights * strength)
