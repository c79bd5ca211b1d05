"""Philox 4x32-10: noise that is a function of seed and counter, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counters: Tensor, seed: int) -> Tensor:
    """Four words in [0, 2^32) for each of the `counters` (count,): int64 (count, 4).

    A counter, below 2^32, is the first of Philox's four; `seed` fills both words of its key.
    """
    zero = torch.zeros_like(counters)
    words = [counters, zero, zero, zero]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        # The 64-bit products wrap around in int64; their bits are those of unsigned arithmetic.
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        # In place where the tensor is ours: half of the time goes into fresh memory otherwise.
        words = [
            (second >> 32).bitwise_and_(_WORD).bitwise_xor_(words[1]).bitwise_xor_(key[0]),
            second.bitwise_and_(_WORD),
            (first >> 32).bitwise_and_(_WORD).bitwise_xor_(words[3]).bitwise_xor_(key[1]),
            first.bitwise_and_(_WORD),
        ]
        key = [(word + step) & _WORD for word, step in zip(key, _KEY_STEPS, strict=True)]
    return torch.stack(words, dim=1)
