"""Windowed-sinc resampling, equal to the last bit to `torchaudio.functional.resample`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...timing import resampled_length

_WIDTH = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99


def resample(x: Tensor, source: int, target: int) -> Tensor:
    """x (..., S) at `source` Hz -> (..., ceil(S * target / source)) at `target` Hz.

    Beyond its ends the signal counts as zero; the length follows `timing.resampled_length`.
    """
    if source == target:
        return x
    common = math.gcd(source, target)
    kernel, width = _kernel(source // common, target // common, x.dtype)
    stride = source // common
    rows = F.pad(x.reshape(-1, 1, x.shape[-1]), (width, width + stride))
    rows = F.conv1d(rows, kernel.to(x.device), stride=stride)  # (rows, n, frames)
    rows = rows.transpose(1, 2).flatten(1)  # phases interleave: sample f * n + j
    length = resampled_length(x.shape[-1], source, target)
    return rows[:, :length].reshape(*x.shape[:-1], -1)


def _kernel(o: int, n: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Filters (n, 1, 2 * width + o), one per output phase, and `width`.

    Computed in the dtype of the signal, in this order: a float64 kernel is off by up to 9e-5.
    """
    base = min(o, n) * _ROLLOFF
    width = math.ceil(_WIDTH * o / base)
    inputs = torch.arange(-width, width + o, dtype=dtype) / o
    t = (torch.arange(0, -n, -1, dtype=dtype) / n)[:, None] + inputs
    t = (t * base).clamp(-_WIDTH, _WIDTH)
    window = torch.cos(t * math.pi / _WIDTH / 2).square()
    t = t * math.pi
    sinc = torch.where(t == 0, 1.0, t.sin() / t)
    return (sinc * (window * (base / o)))[:, None], width
