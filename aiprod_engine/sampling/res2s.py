"""The res_2s loop: second-order exponential integrator in log sigma, two noises per step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Streams, TokenState
from .loops import (
    Denoiser,
    StepCallback,
    StepInfo,
    advance,
    blend,
    blend_float32,
    ignore,
    intervals,
)
from .noise import NoiseSource, draw
from .steps import exponential_coefficients, renoise

_LAST_SIGMA = 0.0011  # stands in for the final 0, whose logarithm does not exist
_MIDPOINT_ETA = 0.5  # fixed, whatever the eta of the loop


@torch.no_grad()
def res_2s(
    denoise: Denoiser,
    states: Streams,
    sigmas: Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: StepCallback = ignore,
    eta: float = 0.5,
    anchor_iterations: int = 100,
    per_token: bool = False,
) -> Streams:
    """Sample with two evaluations per step and one more at the end of a schedule that ends in 0.

    `anchor_iterations` 0 switches the refinement of the anchor off. With `per_token` every token
    is re-noised for its own level mask * sigma; one token with mask 0 then disables all noise.
    """
    count = len(sigmas) - 1
    ends_clean = float(sigmas[-1]) == 0
    if ends_clean:
        sigmas = torch.cat([sigmas[:-1], sigmas.new_tensor([_LAST_SIGMA])])

    for step, sigma, sigma_next in intervals(sigmas):
        interval = _Interval(sigma, sigma_next, anchor_iterations)
        anchors = states.map(lambda state: state.latent.float())
        denoised = denoise(states, sigma, step).map(blend_float32, states)

        midpoints = anchors.map(interval.midpoint, denoised)
        inject = _Renoise(sigma, interval.middle, _MIDPOINT_ETA, per_token)
        fresh = draw(noise, states, f"substep{step}", torch.float32)
        midpoints = states.map(inject, anchors, midpoints, fresh)
        anchors = anchors.map(interval.refined, midpoints, denoised)

        # Step index 0: the midpoint is never one of the evaluations that step skipping leaves out.
        middle_states = advance(states, midpoints, step)
        denoised_middle = denoise(middle_states, interval.middle, 0).map(blend_float32, states)
        ends = anchors.map(interval.end, denoised, denoised_middle)
        inject = _Renoise(sigma, sigma_next, eta, per_token)
        fresh = draw(noise, states, f"step{step}", torch.float32)
        states = advance(states, states.map(inject, anchors, ends, fresh), step)
        on_step(StepInfo(step, count, sigma, denoised))

    if ends_clean:
        last = float(sigmas[-1])
        states = advance(states, denoise(states, last, count).map(blend_float32, states), count)
    return states


class _Interval:
    """One step of length `h` in log sigma; anchor, midpoint and end are float32 samples."""

    def __init__(self, sigma: float, sigma_next: float, anchor_iterations: int) -> None:
        self.h = math.log(sigma / sigma_next)
        self.middle = math.sqrt(sigma * sigma_next)
        self.a21, self.b1, self.b2 = exponential_coefficients(self.h)
        refines = self.h < 0.5 and sigma > 0.03  # longer steps would not converge fast enough
        self.anchor_iterations = anchor_iterations if refines else 0

    def midpoint(self, anchor: Tensor, x0: Tensor) -> Tensor:
        return anchor + self.h * self.a21 * (x0 - anchor)

    def refined(self, anchor: Tensor, midpoint: Tensor, x0: Tensor) -> Tensor:
        """Return the anchor that leads to the re-noised midpoint.

        The reference repeats anchor <- midpoint - share * (x0 - anchor); after n rounds that is the
        fixed point plus share^n of the first distance to it.
        """
        if not self.anchor_iterations:
            return anchor
        share = self.h * self.a21  # below 1/4, as h is below 1/2
        fixed = (midpoint - share * x0) / (1 - share)
        return fixed + share**self.anchor_iterations * (anchor - fixed)

    def end(self, anchor: Tensor, x0: Tensor, x0_middle: Tensor) -> Tensor:
        return anchor + self.h * (self.b1 * (x0 - anchor) + self.b2 * (x0_middle - anchor))


@dataclass(frozen=True)
class _Renoise:
    """Re-noising of one stream; kept tokens are made clean again unless sigmas are per token."""

    sigma: float
    sigma_next: float
    eta: float
    per_token: bool

    def __call__(self, state: TokenState, start: Tensor, end: Tensor, noise: Tensor) -> Tensor:
        if self.per_token:
            mask = state.denoise_mask
            return renoise(start, end, noise, mask * self.sigma, mask * self.sigma_next, self.eta)
        return blend(renoise(start, end, noise, self.sigma, self.sigma_next, self.eta), state)
