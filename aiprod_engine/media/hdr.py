"""Curves between scene-linear light and the working code of HDR runs (2.3).

Neither curve clamps; negative values follow the linear part.
"""

from __future__ import annotations

import torch
from torch import Tensor

# LogC3 at exposure index 800
_A, _B, _C, _D = 5.555556, 0.052272, 0.247190, 0.385537
_E, _F = 5.367655, 0.092809
_CUT = 0.010591

# ACEScct
_SLOPE, _OFFSET = 10.5402377416545, 0.0729055341958355
_LINEAR_END, _CODE_END = 0.0078125, 0.155251141552511
_LOG_SCALE, _LOG_OFFSET = 17.52, 9.72


def logc3_encode(linear: Tensor) -> Tensor:
    """LogC3 code of scene-linear values."""
    log = _C * torch.log10(_A * linear + _B) + _D
    return torch.where(linear > _CUT, log, _E * linear + _F)


def logc3_decode(code: Tensor) -> Tensor:
    """Scene-linear values of LogC3 code."""
    log = (torch.pow(10.0, (code - _D) / _C) - _B) / _A
    return torch.where(code > _E * _CUT + _F, log, (code - _F) / _E)


def acescct_encode(linear: Tensor) -> Tensor:
    """ACEScct code of scene-linear ACEScg values."""
    log = (torch.log2(linear) + _LOG_OFFSET) / _LOG_SCALE
    return torch.where(linear <= _LINEAR_END, _SLOPE * linear + _OFFSET, log)


def acescct_decode(code: Tensor) -> Tensor:
    """Scene-linear ACEScg values of ACEScct code."""
    log = torch.exp2(_LOG_SCALE * code - _LOG_OFFSET)
    return torch.where(code <= _CODE_END, (code - _OFFSET) / _SLOPE, log)
