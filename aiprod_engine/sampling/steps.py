"""Single sampler steps: from the sample at `sigma` to the sample at the lower `sigma_next`.

Convention: x = (1 - sigma) x0 + sigma eps. Sigmas are Python floats, so that the coefficients are
exact and no step waits for the device; tensors (B, N, C).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SizeError

_FLOAT32_EPS = 1.1920928955078125e-07

Sigma = float | Tensor
"""One level for all tokens, or levels per token (B, N, 1)."""


def velocity(x: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """Return dx/dsigma = (x - x0) / sigma, rounded to the dtype of `x`."""
    if sigma == 0:
        raise SizeError("a step must start at a sigma above 0, got 0; drop the inner zeros")
    return ((x.float() - x0.float()) / sigma).to(x.dtype)


def euler_step(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Return x + v (sigma_next - sigma) in the dtype of `x`; v is rounded to it first."""
    v = velocity(x, x0, sigma)
    return (x.float() + v.float() * (sigma_next - sigma)).to(x.dtype)


def heun_step(
    x: Tensor, x0: Tensor, ahead: Tensor, x0_ahead: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """Return the step along the mean of the velocities at `x` and at its Euler step `ahead`."""
    first, second = velocity(x, x0, sigma), velocity(ahead, x0_ahead, sigma_next)
    return x.float() + (first.float() + second.float()) / 2 * (sigma_next - sigma)


class Weights(NamedTuple):
    """A stochastic step as a linear combination of the tensors named by the fields."""

    x: float
    x0: float
    uncond: float
    noise: float

    def mix(self, x: Tensor, x0: Tensor, uncond: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return the weighted sum in float32; terms without a tensor must have weight 0."""
        y = self.x * x.float() + self.x0 * x0.float()
        if uncond is not None:
            y = y + self.uncond * uncond.float()
        return y if noise is None else y + self.noise * noise.float()


def ancestral_weights(
    sigma: float, sigma_next: float, eta: float = 1.0, s_noise: float = 1.0
) -> Weights:
    """Weights of the ancestral Euler step of rectified flow; eta 0 is plain Euler."""
    if sigma_next == 0:
        return Weights(0.0, 1.0, 0.0, 0.0)
    down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    keep, noise = 1.0, 0.0
    if eta > 0:
        if down < 1:  # else a step from 1 to 1, which keeps all
            keep = (1 - sigma_next) / (1 - down)
        noise = s_noise * math.sqrt(max(sigma_next**2 - (down * keep) ** 2, 0.0))
    return Weights(keep * down / sigma, keep * (1 - down / sigma), 0.0, noise)


def cfg_pp_weights(
    sigma: float, sigma_next: float, eta: float = 1.0, s_noise: float = 1.0
) -> Weights:
    """Weights of the CFG++ Euler step: direction from the unconditional x0, target the guided x0.

    In terms of variance exploding noise (sigma / alpha) it is a DDIM ancestral step.
    """
    if sigma_next == 0:
        return Weights(0.0, 1.0, 0.0, 0.0)
    alpha, alpha_next = max(1 - sigma, _FLOAT32_EPS), max(1 - sigma_next, _FLOAT32_EPS)
    start, end = sigma / alpha, sigma_next / alpha_next
    up = min(eta * math.sqrt(end**2 * max(start**2 - end**2, 0.0) / start**2), end)
    down = alpha_next * math.sqrt(max(end**2 - up**2, 0.0))
    return Weights(down / sigma, alpha_next, -down * alpha / sigma, alpha_next * s_noise * up)


def exponential_coefficients(h: float, c2: float = 0.5) -> tuple[float, float, float]:
    """Return (a21, b1, b2) of the two-stage exponential integrator for the log step `h`."""
    b2 = _phi(2, -h) / c2
    return c2 * _phi(1, -h * c2), _phi(1, -h) - b2, b2


def _phi(order: int, z: float) -> float:
    """(e^z - sum of the first `order` Taylor terms) / z^order."""
    if abs(z) < 1e-10:
        return 1 / math.factorial(order)
    series = sum(z**i / math.factorial(i) for i in range(order))
    return (math.exp(z) - series) / z**order


def sde_coefficients(sigma_next: Sigma, eta: float) -> tuple[Sigma, Sigma, Sigma]:
    """Return (alpha_ratio, sigma_down, sigma_up) of the re-noise step.

    Results are floats or per-token tensors as `sigma_next` is.
    """
    share = min(eta, 0.9999)  # of sigma_next that is noise; keeps the rest of it above 0
    rest = sigma_next * math.sqrt(1 - share**2)
    ratio = 1 - sigma_next + rest
    return ratio, rest / ratio, sigma_next * share


def renoise(
    x: Tensor, target: Tensor, noise: Tensor, sigma: Sigma, sigma_next: Sigma, eta: float
) -> Tensor:
    """Return `target`, an ODE solution at `sigma_next` that started from `x`, with fresh noise.

    The ODE is followed further down and noise brings it back to `sigma_next`. If a
    single `sigma_next` is 0, or the step has no length, nothing is added at all.
    """
    ends = (sigma_next, sigma - sigma_next)
    if eta == 0 or any(bool(torch.as_tensor(end).eq(0).any()) for end in ends):
        return target
    ratio, down, up = sde_coefficients(sigma_next, eta)
    reach = (sigma - down) / (sigma - sigma_next)  # 1 would end at sigma_next
    return ratio * (x + reach * (target - x)) + up * noise
