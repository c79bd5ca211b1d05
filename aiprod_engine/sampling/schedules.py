"""Noise schedules: float32 tensors on the CPU, from the first sigma down to the final 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import SizeError

DEFAULT_TOKENS = 4096  # what every reference pipeline but HQ passes, whatever the real size

# Fixed tables. Where no version is named a table serves 2.0, 2.3 and 2.5.
TABLES: dict[str, tuple[float, ...]] = {
    "distilled": (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0),
    "stage_2": (0.909375, 0.725, 0.421875, 0.0),  # second stage of every two-stage pipeline
    "temporal_round": (0.975, 0.909375, 0.725, 0.421875, 0.0),  # 2.5, DFR
    "hdr_stage_2": (0.909375, 0.725, 0.0),  # 2.3, HDR IC-LoRA
    "tiled_stage_2": (0.625, 0.4, 0.0),  # 2.3 and 2.5, tiled runner of the reference
    "cfg_pp_stage_2": (0.85, 0.725, 0.4219, 0.0),  # 2.3 published workflow, CFG++ samplers
    "inpaint_stage_2": (0.725, 0.4219, 0.0),  # 2.3 published workflow, in- and outpainting
}


def table(name: str) -> Tensor:
    """Return a fixed table, (steps + 1,)."""
    if name not in TABLES:
        raise SizeError(f"no sigma table is called {name!r}; tables: {', '.join(TABLES)}")
    return torch.tensor(TABLES[name])


def ltx2(
    steps: int,
    tokens: int = DEFAULT_TOKENS,
    *,
    max_shift: float = 2.05,
    base_shift: float = 0.95,
    stretch: bool = True,
    terminal: float = 0.1,
) -> Tensor:
    """Return the schedule of undistilled models, (steps + 1,), shifted by the video token count.

    `tokens` is F x H x W of the video latent; the shift is linear in it and not clamped. With
    `stretch` the last sigma before 0 is `terminal`.
    """
    _check_steps(steps, least=2)  # a single step would be [terminal, 0]
    shift = math.exp(base_shift + (max_shift - base_shift) * (tokens - 1024) / (4096 - 1024))
    odds = 1 / torch.linspace(1.0, 0.0, steps + 1)[:-1] - 1
    sigmas = shift / (shift + odds)
    if stretch:
        clean = 1 - sigmas
        if clean[-1] == 0:  # from some 50,000 tokens on float32 sees no distance to 1
            clean = odds / (shift + odds)
        sigmas = 1 - clean / (clean[-1] / (1 - terminal))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def linear_quadratic(
    steps: int, threshold: float = 0.025, linear_steps: int | None = None
) -> Tensor:
    """Return a schedule, (steps + 1,), that falls linearly to 1 - `threshold`, then quadratically.

    With 8 steps and the defaults it is the distilled table.
    """
    _check_steps(steps, least=1)
    if steps == 1:
        return torch.tensor([1.0, 0.0])
    linear = steps // 2 if linear_steps is None else linear_steps
    if not 1 <= linear < steps:
        raise SizeError(f"linear_steps must lie in 1..{steps - 1}, got {linear}")
    curved = steps - linear
    gap = linear - threshold * steps
    a = gap / (linear * curved**2)
    b = threshold / linear - 2 * gap / curved**2
    c = a * linear**2
    clean = [i * threshold / linear for i in range(linear)]
    clean += [a * i * i + b * i + c for i in range(linear, steps)]
    return torch.tensor([1 - z for z in clean] + [0.0])


def beta(steps: int, alpha: float = 0.6, beta: float = 0.6, shift: float = 2.37) -> Tensor:
    """Return a schedule of beta quantiles over a shifted table of 10,000 sigmas.

    Quantiles that fall on the same entry count once, so it may have fewer than steps + 1 values.
    """
    _check_steps(steps, least=1)
    entries = 10_000
    indices = []
    for i in range(steps):
        quantile = _beta_quantile(1 - i / steps, alpha, beta)
        indices.append(round(quantile * (entries - 1)))  # half to even
    growth = math.exp(shift)
    levels = [(index + 1) / entries for index in dict.fromkeys(indices)]
    return torch.tensor([growth / (growth + 1 / u - 1) for u in levels] + [0.0])


def _check_steps(steps: int, least: int) -> None:
    if steps < least:
        raise SizeError(f"steps must be at least {least}, got {steps}")


def _beta_quantile(p: float, a: float, b: float) -> float:
    """Inverse of the regularised incomplete beta function, by bisection."""
    if p >= 1:
        return 1.0
    if a == b and p == 0.5:
        return 0.5  # exact by symmetry; 1e-16 less would round to another table entry
    low, high = 0.0, 1.0
    for _ in range(60):  # halvings down to the resolution of a double
        middle = (low + high) / 2
        if middle == 1:  # no double lies between
            break
        if _beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) for 0 < x < 1."""
    if x > (a + 1) / (a + b + 2):  # the continued fraction converges fast below this point only
        return 1 - _beta_cdf(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)), evaluated from the far end."""
    value = 1.0
    for m in range(64, 0, -1):  # some 20 terms reach double precision
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        k = m - 1
        odd = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        value = 1 + odd / (1 + even / value)
    return value
